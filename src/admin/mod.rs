//! The HTTP server: the admin API, the operators' page, probes and metrics. One endpoint a file.

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
    http::StatusCode,
    middleware,
    routing::{get, post},
};
use tokio::net::TcpListener;

pub use api::PREFIX as API_PREFIX;
use api::{asyncapi, openapi};
pub use http::{
    auth::{Role, Tokens, TokensError},
    login_throttle::Guesses,
};
use http::{middleware as guard, problem::Problem, server, session};
pub use state::{AppState, Config, Ready};

/// Serves until everything has to end.
pub async fn serve(listener: TcpListener, state: AppState) {
    let (config, lifecycle) = (state.config.clone(), state.lifecycle.clone());
    if config.admin_tokens.is_empty() {
        tracing::warn!(
            "no ADMIN_TOKENS are set: the admin API and the page answer loopback peers alone"
        );
    }
    server::serve(listener, router(state), &config, lifecycle).await;
}

fn router(state: AppState) -> Router {
    let (api, description) = openapi::routes().split_for_parts();
    let authenticate = || middleware::from_fn_with_state(state.clone(), guard::authenticate);
    let api = api.route("/session", get(session::show)).route_layer(authenticate());
    let page = Router::new()
        .route("/", get(page::show))
        .route_layer(middleware::from_fn_with_state(state.clone(), guard::authenticate_page));
    let mut open = Router::new()
        .route("/healthz", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::render))
        .route("/asyncapi.json", get(asyncapi::show))
        .route("/session", post(session::begin))
        .route("/session/end", post(session::end))
        .merge(openapi::docs(description));
    for (path, content_type, content) in page::ASSETS {
        open = open.route(path, get(async move || page::asset(content_type, content)));
    }
    open.merge(api)
        .merge(page)
        .fallback(async || Problem::not_found("there is nothing here; /docs lists what there is"))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path knows other methods; the header Allow lists them",
            )
        })
        .layer(middleware::from_fn_with_state(state.clone(), guard::limit))
        .layer(middleware::from_fn(guard::headers))
        .with_state(state)
}
