//! `GET /`: the operators' page, compiled in.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};

const PAGE: &str = include_str!("index.html");
const LOGIN: &str = include_str!("login.html");

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// The page's own files: name, content type, content.
pub(crate) const ASSETS: [(&str, &str, &str); 6] = [
    ("/assets/style.css", "text/css; charset=utf-8", include_str!("style.css")),
    ("/assets/app.js", JAVASCRIPT, include_str!("app.js")),
    ("/assets/api.js", JAVASCRIPT, include_str!("api.js")),
    ("/assets/job.js", JAVASCRIPT, include_str!("job.js")),
    ("/assets/view.js", JAVASCRIPT, include_str!("view.js")),
    ("/assets/icon.svg", "image/svg+xml", include_str!("icon.svg")),
];

/// The page. The middleware shows the login form to everybody who may not see it.
pub(crate) async fn show() -> Html<&'static str> {
    Html(PAGE)
}

/// The form that takes a token.
pub(crate) fn login(problem: Option<&'static str>) -> Response {
    let status = if problem.is_some() { StatusCode::FORBIDDEN } else { StatusCode::OK };
    (status, Html(LOGIN.replace("{{problem}}", problem.unwrap_or_default()))).into_response()
}

/// One of [`ASSETS`].
pub(crate) fn asset(content_type: &'static str, content: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        // A new version of the service has new files under the same names.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, content).into_response()
}
