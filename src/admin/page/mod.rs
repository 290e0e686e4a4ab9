//! `GET /`: the operators' page, compiled into the program.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};

const PAGE: &str = include_str!("index.html");
const LOGIN: &str = include_str!("login.html");

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// The files of the page: path, content type, content.
pub(crate) const ASSETS: [(&str, &str, &str); 13] = [
    ("/assets/style.css", "text/css; charset=utf-8", include_str!("style.css")),
    ("/assets/app.js", JAVASCRIPT, include_str!("app.js")),
    ("/assets/actions.js", JAVASCRIPT, include_str!("actions.js")),
    ("/assets/api.js", JAVASCRIPT, include_str!("api.js")),
    ("/assets/bulk.js", JAVASCRIPT, include_str!("bulk.js")),
    ("/assets/groups.js", JAVASCRIPT, include_str!("groups.js")),
    ("/assets/job.js", JAVASCRIPT, include_str!("job.js")),
    ("/assets/keys.js", JAVASCRIPT, include_str!("keys.js")),
    ("/assets/list.js", JAVASCRIPT, include_str!("list.js")),
    ("/assets/overview.js", JAVASCRIPT, include_str!("overview.js")),
    ("/assets/unprocessable.js", JAVASCRIPT, include_str!("unprocessable.js")),
    ("/assets/view.js", JAVASCRIPT, include_str!("view.js")),
    ("/assets/icon.svg", "image/svg+xml", include_str!("icon.svg")),
];

/// The page, which sends its requests to paths below `api_prefix`. The middleware shows the login
/// form to clients without a session.
pub(crate) fn show(api_prefix: &str) -> Html<String> {
    Html(PAGE.replace("{{api}}", api_prefix))
}

/// The login form, with an error message if there is one.
pub(crate) fn login(problem: Option<&'static str>) -> Response {
    let status = if problem.is_some() { StatusCode::FORBIDDEN } else { StatusCode::OK };
    (status, Html(LOGIN.replace("{{problem}}", problem.unwrap_or_default()))).into_response()
}

/// One of [`ASSETS`].
pub(crate) fn asset(content_type: &'static str, content: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        // A new release serves other contents under the same names.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, content).into_response()
}
