//! What is asked of httpbin, and what must come back.
//!
//! `/range/N` is most of it: a deterministic body whose making costs CPU in proportion to N.
//! (`/bytes/N?seed=K` looks as good, but seeds Python's one global generator, which the
//! server's threads share.) `/base64` and `/post` answer with what they were sent, so an answer
//! that reached the wrong request shows. A few requests wait, as requests to a back end do.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rand::{Rng, RngExt as _};
use sha2::{Digest as _, Sha256};

use super::record::Outcome;

/// Sizes of `/range/N` asked for.
const RANGE_SIZES: [u32; 8] = [512, 640, 768, 896, 1_024, 1_152, 1_280, 1_408];
/// What a waiting request waits for.
const WAIT: Duration = Duration::from_millis(30);

/// A keep-alive client without a bound on its connections: an open loop must never queue here.
pub type HttpClient = Client<HttpConnector, Full<Bytes>>;

/// Makes a client.
#[must_use]
pub fn client() -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new())
        .pool_idle_timeout(Duration::from_secs(60))
        .pool_max_idle_per_host(usize::MAX)
        .build(connector)
}

#[derive(Clone, Debug)]
enum Expected {
    Sha256([u8; 32]),
    JsonText { pointer: &'static str, text: String },
}

/// One request and what must answer it.
#[derive(Clone, Debug)]
pub struct Shot {
    method: Method,
    path: String,
    body: Bytes,
    expected: Expected,
}

impl Shot {
    /// May be repeated safely.
    #[must_use]
    pub fn idempotent(&self) -> bool {
        self.method.is_idempotent()
    }

    /// Sends it and judges the answer.
    pub async fn fire(self, client: &HttpClient, target: SocketAddr) -> Outcome {
        let request = Request::builder()
            .method(self.method)
            .uri(format!("http://{target}{}", self.path))
            .header("content-type", "text/plain")
            .body(Full::new(self.body));
        let Ok(request) = request else {
            return Outcome::Transport;
        };
        let Ok(response) = client.request(request).await else {
            return Outcome::Transport;
        };
        let status = response.status();
        let Ok(body) = response.into_body().collect().await else {
            return Outcome::Transport;
        };
        if status != StatusCode::OK {
            return Outcome::Status(status.as_u16());
        }
        if self.expected.holds(&body.to_bytes()) {
            Outcome::Ok
        } else {
            Outcome::Body
        }
    }
}

impl Expected {
    fn holds(&self, body: &[u8]) -> bool {
        match self {
            Self::Sha256(expected) => Sha256::digest(body).as_slice() == expected,
            Self::JsonText { pointer, text } => {
                serde_json::from_slice(body).is_ok_and(|json: serde_json::Value| {
                    json.pointer(pointer).and_then(serde_json::Value::as_str) == Some(text)
                })
            }
        }
    }
}

/// Draws requests.
#[derive(Clone, Debug)]
pub struct Mix {
    ranges: Vec<(u32, [u8; 32])>,
}

impl Mix {
    /// Asks an instance directly for the bodies that later answers must equal.
    ///
    /// # Errors
    /// The instance does not answer 200.
    pub async fn learn(client: &HttpClient, instance: SocketAddr) -> Result<Self> {
        let mut ranges = Vec::new();
        for size in RANGE_SIZES {
            let body = get(client, instance, &format!("/range/{size}")).await?;
            ensure!(
                body.len() == size as usize,
                "/range/{size} answered {} bytes",
                body.len()
            );
            ranges.push((size, Sha256::digest(&body).into()));
        }
        Ok(Self { ranges })
    }

    /// The next request: 79 % `/range`, 10 % `/post`, 8 % `/base64`, 3 % `/delay`.
    pub fn draw(&self, random: &mut impl Rng) -> Shot {
        match random.random_range(0..100_u32) {
            0..10 => {
                let text = text(random, 64..512);
                Shot {
                    method: Method::POST,
                    path: "/post".to_owned(),
                    body: Bytes::from(text.clone()),
                    expected: Expected::JsonText {
                        pointer: "/data",
                        text,
                    },
                }
            }
            10..18 => {
                let text = text(random, 32..128);
                Shot {
                    method: Method::GET,
                    path: format!("/base64/{}", base64(text.as_bytes())),
                    body: Bytes::new(),
                    expected: Expected::Sha256(Sha256::digest(text.as_bytes()).into()),
                }
            }
            18..21 => {
                let text = text(random, 8..9);
                Shot {
                    method: Method::GET,
                    path: format!("/delay/{}?id={text}", WAIT.as_secs_f64()),
                    body: Bytes::new(),
                    expected: Expected::JsonText {
                        pointer: "/args/id",
                        text,
                    },
                }
            }
            _ => {
                let (size, digest) = self.ranges[random.random_range(0..self.ranges.len())];
                Shot {
                    method: Method::GET,
                    path: format!("/range/{size}"),
                    body: Bytes::new(),
                    expected: Expected::Sha256(digest),
                }
            }
        }
    }
}

/// One GET that must answer 200 within five seconds.
///
/// # Errors
/// It does not.
pub async fn get(client: &HttpClient, target: SocketAddr, path: &str) -> Result<Bytes> {
    let uri = format!("http://{target}{path}");
    let ask = async {
        let response = client.get(uri.parse()?).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status == StatusCode::OK, "{status}");
        Ok(body)
    };
    let answer = tokio::time::timeout(Duration::from_secs(30), ask).await;
    answer
        .context("no answer in 30 s")
        .and_then(|answer| answer)
        .with_context(|| uri.clone())
}

fn text(random: &mut impl Rng, lengths: std::ops::Range<usize>) -> String {
    let length = random.random_range(lengths);
    (0..length)
        .map(|_| char::from(random.random_range(b'a'..=b'z')))
        .collect()
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk
            .iter()
            .fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            if digit <= chunk.len() {
                out.push(char::from(
                    ALPHABET[(group >> (18 - 6 * digit)) as usize & 63],
                ));
            } else {
                out.push('=');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    #[test]
    fn base64_matches_the_vectors_of_rfc_4648() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn a_wrong_body_is_noticed() {
        let expected = Expected::JsonText {
            pointer: "/data",
            text: "abc".to_owned(),
        };
        assert!(expected.holds(br#"{"data":"abc"}"#));
        assert!(!expected.holds(br#"{"data":"abd"}"#));
        assert!(!expected.holds(b"<html>"));
        let expected = Expected::Sha256(Sha256::digest(b"abc").into());
        assert!(expected.holds(b"abc") && !expected.holds(b"ab"));
    }

    #[test]
    fn about_a_tenth_of_the_mix_is_not_idempotent() {
        let mix = Mix {
            ranges: vec![(512, [0; 32])],
        };
        let mut random = rand_pcg::Pcg64::seed_from_u64(1);
        let posts = (0..10_000)
            .filter(|_| !mix.draw(&mut random).idempotent())
            .count();
        assert!((850..1_150).contains(&posts), "{posts}");
    }
}
