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
    bulk_retries, cleanup, failure_groups, integrity, jobs, process, signup, stats, sync_failures,
    unprocessable, ws,
};
use crate::admin::state::AppState;

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
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(sync_failures::list::list))
        .routes(routes!(failure_groups::list))
        .routes(routes!(stats::show))
        .routes(routes!(integrity::show))
        .routes(routes!(signup::retry))
        .routes(routes!(sync_failures::retry::create))
        .routes(routes!(bulk_retries::list))
        .routes(routes!(bulk_retries::show))
        .routes(routes!(bulk_retries::cancel))
        .routes(routes!(sync_failures::dismiss::dismiss))
        .routes(routes!(jobs::show::show))
        .routes(routes!(jobs::reveal::reveal))
        .routes(routes!(process::process))
        .routes(routes!(cleanup::cleanup))
        .routes(routes!(unprocessable::list::list))
        .routes(routes!(unprocessable::list::show))
        .routes(routes!(unprocessable::replay::replay))
        .routes(routes!(unprocessable::dismiss::dismiss))
        .routes(routes!(ws::watch))
}

/// Swagger UI, which sets styles of its own and draws images that are part of them.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' \
    'unsafe-inline'; \
     img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// The description, and a page that shows it.
pub(crate) fn docs(description: utoipa::openapi::OpenApi) -> Router<AppState> {
    let ui: Router<AppState> = SwaggerUi::new("/docs").url("/openapi.json", description).into();
    ui.layer(middleware::map_response(async |mut response: axum::response::Response| {
        response
            .headers_mut()
            .insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(DOCS_POLICY));
        response
    }))
}
