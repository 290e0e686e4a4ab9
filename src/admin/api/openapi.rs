//! `GET /openapi.json` and `GET /docs`: describes the admin API, from the types that it parses and
//! writes.

use axum::{
    Router,
    http::{HeaderValue, Method, header},
    middleware,
};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};
use utoipa_swagger_ui::SwaggerUi;

use super::{
    PREFIX, breaker, bulk_actions, bulk_retries, cleanup, failure_groups, integrity, jobs, process,
    signup, stats, sync_failures, unprocessable, ws,
};
use crate::admin::{http::requests::Route, state::AppState};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "customerio-sync",
        description = "Find, understand and fix what did not reach Customer.io.\n\nErrors are RFC \
            9457 problem details. With ADMIN_TOKENS set, every request needs a token: the role \
            `viewer` allows reads, the role `operator` also allows changes. Personal data is \
            masked for viewers, and in the session of a browser until it is revealed. \
            /asyncapi.json describes the messages.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    security(("token" = [])),
    modifiers(&BearerScheme),
    tags(
        (name = "overview", description = "Counts, live frames and the integrity check."),
        (name = "failures", description = "Failed jobs."),
        (name = "bulk", description = "Actions on many failures or messages."),
        (name = "jobs", description = "Single jobs, and jobs that are ready or abandoned."),
        (name = "unprocessable", description = "Messages that could not be parsed or validated."),
    )
)]
struct Description;

/// `Authorization: Bearer TOKEN` (RFC 6750).
struct BearerScheme;

impl Modify for BearerScheme {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        openapi
            .components
            .get_or_insert_default()
            .add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// The routes of the admin API below [`PREFIX`], with their description.
pub(crate) fn routes() -> OpenApiRouter<AppState> {
    let routes = OpenApiRouter::new()
        .routes(routes!(sync_failures::list::list))
        .routes(routes!(failure_groups::list))
        .routes(routes!(stats::show))
        .routes(routes!(integrity::show))
        .routes(routes!(breaker::close))
        .routes(routes!(signup::retry::retry))
        .routes(routes!(sync_failures::retry::create))
        .routes(routes!(bulk_retries::list))
        .routes(routes!(bulk_retries::show))
        .routes(routes!(bulk_retries::cancel))
        .routes(routes!(sync_failures::dismiss::dismiss))
        .routes(routes!(bulk_actions::list))
        .routes(routes!(bulk_actions::show))
        .routes(routes!(bulk_actions::cancel))
        .routes(routes!(jobs::show::show))
        .routes(routes!(jobs::reveal::reveal))
        .routes(routes!(process::process))
        .routes(routes!(cleanup::cleanup))
        .routes(routes!(unprocessable::list::list))
        .routes(routes!(unprocessable::list::show))
        .routes(routes!(unprocessable::reveal::reveal))
        .routes(routes!(unprocessable::replay::replay))
        .routes(routes!(unprocessable::dismiss::dismiss))
        .routes(routes!(unprocessable::replay::replay_all))
        .routes(routes!(unprocessable::dismiss::dismiss_all))
        .routes(routes!(ws::outcomes))
        .routes(routes!(ws::live));
    OpenApiRouter::with_openapi(Description::openapi()).nest(PREFIX, routes)
}

/// The routes that the description lists.
pub(crate) fn described(description: &utoipa::openapi::OpenApi) -> Vec<Route> {
    let mut routes = Vec::new();
    for (path, item) in &description.paths.paths {
        let operations = [
            (Method::GET, &item.get),
            (Method::POST, &item.post),
            (Method::PUT, &item.put),
            (Method::PATCH, &item.patch),
            (Method::DELETE, &item.delete),
        ];
        let present = operations.iter().filter(|(_, operation)| operation.is_some());
        routes.extend(present.map(|(method, _)| (method.clone(), path.clone())));
    }
    routes
}

/// Content security policy of Swagger UI, which has inline styles and `data:` images.
const DOCS_POLICY: &str = "default-src 'none'; script-src 'self'; \
    style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The routes of the description and of Swagger UI.
pub(crate) fn docs(description: utoipa::openapi::OpenApi) -> Router<AppState> {
    let ui: Router<AppState> = SwaggerUi::new("/docs").url("/openapi.json", description).into();
    ui.layer(middleware::map_response(async |mut response: axum::response::Response| {
        response
            .headers_mut()
            .insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(DOCS_POLICY));
        response
    }))
}
