# The image of the service. Build it with the digest of the base image, so that a build can be repeated:
#
#   docker build --build-arg BASE_IMAGE=gcr.io/distroless/cc-debian12@sha256:… -t customerio-sync .
#
# Both images have the C library of Debian 12.
ARG BUILD_IMAGE=rust:1.95-bookworm
ARG BASE_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
# Queries are checked against .sqlx/, not against a database.
ENV SQLX_OFFLINE=true
# Dependencies, in a layer of their own: it is built again only when they change. Empty sources stand in for ours.
COPY Cargo.toml Cargo.lock rust-toolchain.toml ./
COPY .cargo .cargo
COPY tests/support/servers/Cargo.toml tests/support/servers/
COPY benches/Cargo.toml benches/
COPY benches/pure/Cargo.toml benches/pure/
RUN mkdir -p src benches/src benches/pure/src tests/support/servers/src \
    && echo 'fn main() {}' > src/main.rs \
    && cp src/main.rs benches/src/main.rs \
    && cp src/main.rs benches/pure/src/main.rs \
    && cp src/main.rs tests/support/servers/src/main.rs \
    && touch src/lib.rs tests/support/servers/src/lib.rs \
    && cargo build --release --locked
COPY . .
ARG REVISION=unknown
# cargo compares modification times, and the sources may be older than the stand-ins.
RUN touch src/main.rs src/lib.rs \
    && CUSTOMERIO_SYNC_REVISION="$REVISION" cargo build --release --locked \
    && install -D target/release/customerio-sync /out/customerio-sync

FROM ${BASE_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="customerio-sync" \
      org.opencontainers.image.description="Moves signups from RabbitMQ into Customer.io with at-least-once delivery" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /out/customerio-sync /usr/local/bin/customerio-sync
# A number, so that Kubernetes can verify runAsNonRoot. Any other user works as well: nothing is written to disk.
USER 65532:65532
# The default of the program, loopback, cannot be reached from outside a container.
ENV HTTP_ADDR=0.0.0.0:8080
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/customerio-sync"]
CMD ["serve"]
