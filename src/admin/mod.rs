//! The HTTP server: the admin API, the operators' page, probes and metrics.

mod api;
mod health;
mod http;
mod metrics;
mod page;
#[cfg(any(test, fuzzing))]
pub mod property;
mod state;

use axum::{
    Router,
    http::{Method, StatusCode},
    middleware,
    routing::{get, post},
};
use tokio::net::TcpListener;

pub use api::PREFIX as API_PREFIX;
use api::{asyncapi, openapi};
pub use health::missing_credential;
pub use health::watch_progress;
pub use http::{
    auth::{AccessTokens, AccessTokensError, LiveTokens, Role},
    login_throttle::LoginThrottle,
    session_store::Sessions,
};
use http::{
    middleware as guard,
    problem::Problem,
    requests::{self, RequestMetrics, Route},
    server, session,
};
pub use state::{AppState, Check, Config, ConnectedServices, StartupStatus};

/// Serves requests until the service ends.
pub async fn serve(listener: TcpListener, state: AppState) {
    let (config, shutdown) = (state.config.clone(), state.shutdown.clone());
    log_access(&state);
    let (sessions, tokens, ledger) =
        (state.sessions.clone(), state.tokens.clone(), state.ledger.clone());
    tokio::select! {
        () = server::serve(listener, router(state), &config, shutdown) => {}
        () = sessions.follow(&tokens, &ledger) => {}
    }
}

/// Logs who has access.
fn log_access(state: &AppState) {
    if state.tokens.current().are_required {
        tracing::info!("the admin API and the page require a token of ADMIN_TOKENS");
    } else if state.config.addr.ip().to_canonical().is_loopback() {
        tracing::warn!(
            "ADMIN_TOKENS is not set: the admin API and the page answer only loopback peers that \
                are no proxies"
        );
    } else {
        tracing::warn!(
            addr = %state.config.addr,
            "ADMIN_TOKENS is not set, and the service listens on an address that is not loopback: \
                the admin API and the page answer nobody; set ADMIN_TOKENS"
        );
    }
}

fn router(state: AppState) -> Router {
    let (api, description) = openapi::routes().split_for_parts();
    let request_metrics = RequestMetrics::new(state.metrics.clone(), measured_routes(&description));
    let authenticate = || middleware::from_fn_with_state(state.clone(), guard::authenticate);
    let api = api.route("/session", get(session::show)).route_layer(authenticate());
    let page = Router::new()
        .route("/", get(async || page::show(API_PREFIX)))
        .route_layer(middleware::from_fn_with_state(state.clone(), guard::authenticate_page));
    let mut open = Router::new()
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::render))
        .route("/asyncapi.json", get(asyncapi::show))
        .route("/session", post(session::begin).delete(session::delete))
        .route("/session/end", post(session::end))
        .merge(openapi::docs(description));
    for (path, content_type, content) in page::ASSETS {
        open = open.route(path, get(async move || page::asset(content_type, content)));
    }
    open.merge(api)
        .merge(page)
        .fallback(async || Problem::not_found("no such path; /docs lists the paths"))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "the path does not support this method; the header Allow lists the methods it does",
            )
        })
        .layer(middleware::from_fn_with_state(state.clone(), guard::limit))
        .layer(middleware::from_fn(guard::catch_panic))
        .layer(middleware::from_fn(guard::headers))
        .layer(middleware::from_fn_with_state(request_metrics, requests::measure))
        .with_state(state)
}

/// The routes that the metrics distinguish. The files of the page and of Swagger UI are not among
/// them.
fn measured_routes(description: &utoipa::openapi::OpenApi) -> Vec<Route> {
    let mut routes = openapi::described(description);
    let read =
        ["/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/asyncapi.json", "/session"];
    routes.extend(read.map(|path| (Method::GET, path.to_owned())));
    routes.extend(["/session", "/session/end"].map(|path| (Method::POST, path.to_owned())));
    routes
}
