//! `GET /`: the operators' page, compiled in.

use axum::{
    Extension,
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};

use super::auth::Identity;

const PAGE: &str = include_str!("page/index.html");
const LOGIN: &str = include_str!("page/login.html");

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// The page's own files: name, content type, content.
pub(super) const ASSETS: [(&str, &str, &str); 6] = [
    ("/assets/style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("/assets/app.js", JAVASCRIPT, include_str!("page/app.js")),
    ("/assets/api.js", JAVASCRIPT, include_str!("page/api.js")),
    ("/assets/job.js", JAVASCRIPT, include_str!("page/job.js")),
    ("/assets/view.js", JAVASCRIPT, include_str!("page/view.js")),
    ("/assets/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];

/// The page, for whoever may see it.
pub(super) async fn show(_: Extension<Identity>) -> Html<&'static str> {
    Html(PAGE)
}

/// The form that takes a token.
pub(super) fn login(problem: Option<&'static str>) -> Response {
    let status = if problem.is_some() { StatusCode::FORBIDDEN } else { StatusCode::OK };
    (status, Html(LOGIN.replace("{{problem}}", problem.unwrap_or_default()))).into_response()
}

/// One of [`ASSETS`].
pub(super) fn asset(content_type: &'static str, content: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        // A new version of the service has new files under the same names.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, content).into_response()
}
