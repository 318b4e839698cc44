//! What instances are told of a request: who asked, and its trace.

use crate::process::{TRACE, TRUSTED};
use crate::protocol::raw;
use crate::world::World;
use std::collections::BTreeMap;

/// The fields that an instance gets, by the fast path and by the general one, which takes whatever is HTTP/1.0. Of one
/// name their values are joined.
async fn told(world: &World, fields: &str) -> [BTreeMap<String, String>; 2] {
    let mut all = [const { BTreeMap::new() }; 2];
    for (version, told) in ["1.1", "1.0"].into_iter().zip(&mut all) {
        let request = format!(
            "GET /head HTTP/{version}\r\nHost: shop.example:81\r\nConnection: close\r\n{fields}\r\n"
        );
        let answer = raw(world, &request).await;
        // As Rust shows a header map.
        let (_, map) = answer.split_once("GET {").expect("a head");
        let texts = map.split('"').skip(1).step_by(2);
        let mut separators = map.split('"').skip(2).step_by(2);
        let mut name = String::new();
        for text in texts {
            match separators.next() {
                Some(": ") => name = text.to_owned(),
                _ => {
                    let value: &mut String = told.entry(name.clone()).or_default();
                    if !value.is_empty() {
                        value.push_str(" | ");
                    }
                    value.push_str(text);
                }
            }
        }
    }
    all
}

/// Those of them that tell of who asked.
fn of_who_asked(told: &BTreeMap<String, String>) -> Vec<String> {
    let others = ["host", "connection", "x-kept"];
    let of = told
        .iter()
        .filter(|(name, _)| !others.contains(&name.as_str()));
    of.map(|(name, value)| format!("{name}: {value}")).collect()
}

const CLAIMS: &str = "X-Forwarded-For: 1.1.1.1\r\nX-Kept: 1\r\nX-Forwarded-For: 2.2.2.2\r\nX-Forwarded-Proto: https\r\n\
    X-Forwarded-Host: evil.example\r\nX-Forwarded-Prefix: /evil\r\nX-Real-IP: 3.3.3.3\r\nX_Forwarded_For: 4.4.4.4\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_can_t_claim_to_be_another() {
    let (world, _control, _ups) = World::with_two(5_000).await;
    for told in told(&world, CLAIMS).await {
        let expected = [
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: shop.example:81",
            "x-forwarded-proto: http",
        ];
        assert_eq!(of_who_asked(&told), expected);
        assert_eq!(told["x-kept"], "1");
    }
    // Nor keep from the instance who he is, by naming the field as none of its business.
    for version in ["1.1", "1.0"] {
        let request = format!(
            "GET /head HTTP/{version}\r\nHost: a\r\nConnection: close, X-Forwarded-For\r\n\r\n"
        );
        let answer = raw(&world, &request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_word_of_a_trusted_proxy_stands_and_its_list_is_gone_on_with() {
    let trusted = [(TRUSTED, "10.0.0.0/8,127.0.0.0/8")];
    let (world, _control, _ups) = World::with_two_and(5_000, &trusted).await;
    for told in told(&world, CLAIMS).await {
        let expected = [
            "x-forwarded-for: 1.1.1.1, 2.2.2.2, 127.0.0.1",
            "x-forwarded-host: evil.example",
            "x-forwarded-prefix: /evil",
            "x-forwarded-proto: https",
            "x-real-ip: 3.3.3.3",
        ];
        assert_eq!(of_who_asked(&told), expected);
    }
}

const ID: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_pass_untouched_unless_asked_for() {
    let (world, _control, _ups) = World::with_two(5_000).await;
    let fields = format!("traceparent: 00-{ID}-{PARENT}-01\r\ntracestate: a=1\r\n");
    for told in told(&world, &fields).await {
        assert_eq!(told["traceparent"], format!("00-{ID}-{PARENT}-01"));
        assert_eq!(told["tracestate"], "a=1");
    }
    for told in told(&world, "").await {
        assert!(!told.contains_key("traceparent"), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_is_gone_on_with_and_begun_where_there_is_none_to_read() {
    let (world, _control, _ups) = World::with_two_and(5_000, &[(TRACE, "1")]).await;
    let good =
        format!("TraceParent: 00-{ID}-{PARENT}-00\r\ntracestate: a=1\r\nTracestate: b=2\r\n");
    let mut spans = Vec::new();
    for told in told(&world, &good).await {
        let trace = &told["traceparent"];
        assert!(
            trace.starts_with(&format!("00-{ID}-")) && trace.ends_with("-00"),
            "{trace}"
        );
        assert!(!trace.contains(PARENT), "{trace}");
        assert_eq!(told["tracestate"], "a=1 | b=2");
        spans.push(trace.clone());
    }
    for none in [
        String::new(),
        "tracestate: a=1\r\n".to_owned(),
        good.replace("0af7", "0AF7"),
        format!("{good}traceparent: 00-{ID}-{PARENT}-01\r\n"),
    ] {
        for told in told(&world, &none).await {
            let trace = &told["traceparent"];
            assert!(
                trace.len() == 55 && trace.ends_with("-01") && !trace.contains(ID),
                "{trace}"
            );
            assert!(!told.contains_key("tracestate"), "{told:?}");
            spans.push(trace.clone());
        }
    }
    let all = spans.len();
    spans.sort_unstable();
    spans.dedup();
    assert_eq!(spans.len(), all, "each has its own");
}
