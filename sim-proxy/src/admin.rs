//! The admin address: `/metrics`, `/live`, `/ready`.

use crate::metrics;
use crate::tls::accept::Door;
use crate::workloads::Workloads;
use async_trait::async_trait;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use pingora_core::apps::http_app::ServeHttp;
use pingora_core::protocols::http::ServerSession;
use std::sync::Arc;

pub(crate) struct Admin {
    pub(crate) workloads: Arc<Workloads>,
    pub(crate) door: Option<Arc<Door>>,
}

impl Admin {
    fn answer(&self, path: &str) -> (StatusCode, String) {
        match path {
            "/metrics" => {
                let page = metrics::render(&self.workloads, self.door.as_deref());
                (StatusCode::OK, page)
            }
            "/live" => (StatusCode::OK, "live\n".to_owned()),
            "/ready" if self.workloads.are_ready() => (StatusCode::OK, "ready\n".to_owned()),
            "/ready" => (
                StatusCode::SERVICE_UNAVAILABLE,
                "no instance is ready\n".to_owned(),
            ),
            _ => (
                StatusCode::NOT_FOUND,
                "/metrics, /live or /ready\n".to_owned(),
            ),
        }
    }
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let (status, text) = self.answer(session.req_header().uri.path());
        let length = text.len();
        let mut response = Response::new(text.into_bytes());
        *response.status_mut() = status;
        let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, content_type);
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}
