//! `GET /openapi.json` and `GET /docs`: the admin API, described from the types that it reads and
//! writes.

use axum::{
    Router,
    http::{HeaderValue, header},
    middleware,
};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};
use utoipa_swagger_ui::SwaggerUi;

use super::{
    State, bulk_retries, bulk_retry, cleanup, dismiss, dismiss_unprocessable, failures, groups,
    integrity, job, process, replay, retry, reveal, stats, unprocessable, ws,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "customerio-sync",
        description = "See, understand and mend what did not reach Customer.io.\n\nErrors are RFC \
            9457 problem details. \
            With ADMIN_TOKENS set, every request needs a token: the role `viewer` may read, \
            `operator` may act. \
            /asyncapi.json describes the messages.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    security(("token" = [])),
    modifiers(&Token),
    tags(
        (name = "overview", description = "Where things stand."),
        (name = "failures", description = "Jobs that have failed."),
        (name = "bulk", description = "Many failures at once."),
        (name = "jobs", description = "Single jobs, and jobs that are ready or stuck."),
        (name = "unprocessable", description = "Messages that could not be understood."),
    )
)]
struct Description;

/// `Authorization: Bearer TOKEN` (RFC 6750).
struct Token;

impl Modify for Token {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        openapi
            .components
            .get_or_insert_default()
            .add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// The routes of the admin API, with their description.
pub(super) fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(failures::list))
        .routes(routes!(groups::list))
        .routes(routes!(stats::show))
        .routes(routes!(integrity::show))
        .routes(routes!(retry::retry))
        .routes(routes!(bulk_retry::create))
        .routes(routes!(bulk_retries::list))
        .routes(routes!(bulk_retries::show))
        .routes(routes!(bulk_retries::cancel))
        .routes(routes!(dismiss::dismiss))
        .routes(routes!(job::show))
        .routes(routes!(reveal::reveal))
        .routes(routes!(process::process))
        .routes(routes!(cleanup::cleanup))
        .routes(routes!(unprocessable::list))
        .routes(routes!(unprocessable::show))
        .routes(routes!(replay::replay))
        .routes(routes!(dismiss_unprocessable::dismiss))
        .routes(routes!(ws::watch))
}

/// Swagger UI, which sets styles of its own and draws images that are part of them.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' \
    'unsafe-inline'; \
     img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// The description, and a page that shows it.
pub(super) fn docs(description: utoipa::openapi::OpenApi) -> Router<State> {
    let ui: Router<State> = SwaggerUi::new("/docs").url("/openapi.json", description).into();
    ui.layer(middleware::map_response(async |mut response: axum::response::Response| {
        response
            .headers_mut()
            .insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(DOCS_POLICY));
        response
    }))
}
