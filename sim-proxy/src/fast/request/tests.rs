//! Heads of requests, and what is made of them.

use super::*;
use crate::forwarded::ForwardSettings;
use proptest::prelude::*;

fn seen(text: &str) -> (Seen, String) {
    seen_with(text, "192.0.2.7", None)
}

fn seen_with(text: &str, client: &str, trace: Option<TraceSettings>) -> (Seen, String) {
    let mut out = Vec::new();
    let settings = ForwardSettings {
        trusted: vec!["10.0.0.0/8".parse().expect("a network")],
        forwarded: false,
    };
    let via = Via::of(client.parse().ok(), false, &settings);
    let reader = Reader {
        via: &via,
        sticky: None,
        matcher: &Matcher::new([&[][..]]),
        trace,
    };
    let seen = read(text.as_bytes(), reader, &mut out);
    (seen, String::from_utf8(out).expect("text"))
}

fn whole(text: &str) -> (Head, String) {
    match seen(text) {
        (Seen::Whole(head), out) => (head, out),
        (other, _) => panic!("{other:?}: {text:?}"),
    }
}

#[test]
fn the_head_goes_on_as_it_came_but_for_what_is_ours() {
    let text = "POST /a?b HTTP/1.1\r\nhOST: x\r\nConnection: keep-alive\r\nTE: trailers\r\n\
                Proxy-Authorization: Basic x\r\n\
                Content-Length: 3 \r\nX-Forwarded-For: 1.1.1.1\r\nEmpty:\r\n\r\n";
    let (head, out) = whole(&format!("{text}abcGET"));
    assert_eq!(head.len, text.len());
    assert_eq!(head.body, Framing::Length(3));
    assert!(head.keep_alive && !head.idempotent && !head.safe && !head.is_head);
    assert_eq!(
        out,
        "POST /a?b HTTP/1.1\r\nhOST: x\r\nContent-Length: 3 \r\nEmpty:\r\n\
         X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: x\r\n\r\n"
    );
}

const CLAIMS: &str = "GET / HTTP/1.1\r\nHost: x:8\r\nForwarded: for=a\r\nX-Forwarded-For: a\r\n\
    forwarded: for=b\r\nX-Forwarded-For: b\r\nX-Forwarded-Proto: https\r\nx-forwarded-host: y\r\n\
    X-Forwarded-Port: 443\r\nX_Forwarded_For: c\r\nX-Real-IP: d\r\n\r\n";

#[test]
fn a_user_s_word_is_not_taken_for_who_asked() {
    let (_, out) = whole(CLAIMS);
    assert_eq!(
        out,
        "GET / HTTP/1.1\r\nHost: x:8\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\n\
         X-Forwarded-Host: x:8\r\n\r\n"
    );
    let (_, out) = whole("GET / HTTP/1.1\r\nHost: x,y\r\n\r\n");
    assert!(!out.contains("X-Forwarded-Host"), "{out}");
}

#[test]
fn a_trusted_proxy_s_chains_are_continued_in_one_field() {
    let (_, out) = seen_with(CLAIMS, "10.0.0.7", None);
    assert_eq!(
        out,
        "GET / HTTP/1.1\r\nHost: x:8\r\nX-Forwarded-Proto: https\r\nx-forwarded-host: y\r\n\
         X-Forwarded-Port: 443\r\nX-Real-IP: d\r\nX-Forwarded-For: a, b, 10.0.0.7\r\n\
         Forwarded: for=a, for=b, for=10.0.0.7;host=\"x:8\";proto=http\r\n\r\n"
    );
}

#[test]
fn a_trace_passes_untouched_or_is_gone_on_with() {
    let id = "0af7651916cd43dd8448eb211c80319c";
    let fields = format!(
        "TraceState: a=1\r\ntraceparent: 00-{id}-b7ad6b7169203331-01\r\nTracestate: b=2\r\n"
    );
    let text = format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
    let (head, out) = whole(&text);
    assert!(out.contains(&fields) && head.trace.is_none(), "{out}");
    let of = |text: &str| {
        let settings = TraceSettings { sample: 1.0 };
        match seen_with(text, "192.0.2.7", Some(settings)) {
            (Seen::Whole(head), out) => (head.trace.expect("a trace"), out),
            (other, _) => panic!("{other:?}"),
        }
    };
    let (trace, out) = of(&text);
    let passed = format!(
        "traceparent: 00-{id}-{:016x}-01\r\ntracestate: a=1\r\ntracestate: b=2\r\n\r\n",
        trace.span
    );
    assert!(out.ends_with(&passed), "{out}");
    assert_eq!(out.to_ascii_lowercase().matches("traceparent").count(), 1);
    for broken in [text.replace("-01", "-1"), text.replace("traceparent", "x")] {
        let (trace, out) = of(&broken);
        let begun = format!(
            "traceparent: 00-{:032x}-{:016x}-01\r\n\r\n",
            trace.id, trace.span
        );
        assert!(out.ends_with(&begun), "{out}");
        assert!(!out.to_ascii_lowercase().contains("tracestate"), "{out}");
    }
}

#[test]
fn what_is_rare_or_has_two_readings_is_left_to_others() {
    let of = |fields: &str| seen(&format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n")).0;
    for fields in [
        "Content-Length: 1\r\nContent-Length: 1\r\n",
        "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: +1\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Host: y\r\n",
        "X: 1\n",
        "X : 1\r\n",
        "X: 1\r\n y\r\n",
        "X: \u{1}\r\n",
    ] {
        assert!(matches!(of(fields), Seen::Faulty(_)), "{fields:?}");
    }
    for fields in [
        "Content-Length: 18446744073709551616\r\n",
        "Connection: X-Secret\r\n",
        "Connection: upgrade\r\n",
        "Upgrade: websocket\r\n",
        "Connection: upgrade\r\nUpgrade: h2c\r\n",
        "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n",
        "Connection: upgrade, close\r\nUpgrade: websocket\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n",
        "Expect: 100-continue\r\n",
    ] {
        assert_eq!(of(fields), Seen::Other, "{fields:?}");
    }
    for text in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\n\n",
        "GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x/y\r\n\r\n",
        "\u{16}\u{3}\u{1}",
    ] {
        assert!(matches!(seen(text).0, Seen::Faulty(_)), "{text:?}");
    }
    for text in [
        "GET / HTTP/1.0\r\nHost: x\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        assert_eq!(seen(text).0, Seen::Other, "{text:?}");
    }
    assert_eq!(seen("GET / HTTP/1.1\r\nHost: x\r\n").0, Seen::Part);
}

#[test]
fn a_websocket_is_asked_for_in_our_own_words() {
    for fields in [
        "Upgrade: websocket\r\nConnection: Upgrade\r\n",
        "connection: keep-alive, Upgrade\r\nUPGRADE: WebSocket\r\n",
        "Connection: keep-alive\r\nConnection:upgrade\r\nUpgrade:websocket\r\n",
    ] {
        let (head, out) = whole(&format!(
            "GET /a HTTP/1.1\r\nHost: x\r\n{fields}X: 1\r\n\r\n"
        ));
        assert!(head.switches && head.safe, "{fields}");
        let ours =
            "GET /a HTTP/1.1\r\nHost: x\r\nX: 1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
        assert!(out.starts_with(ours), "{out}");
        assert_eq!(out.to_ascii_lowercase().matches("upgrade:").count(), 1);
    }
    let (head, _) = whole("GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n");
    assert!(!head.switches);
}

#[test]
fn no_part_of_a_head_is_left_to_others() {
    let head = |fields: usize| {
        let fields = "A: 1\r\n".repeat(fields);
        format!("GET /ab HTTP/1.2\r\nHost: x\r\n{fields}\r\n")
    };
    for (fields, whole) in [
        (0, Seen::Other),
        (FIELDS_MAX, Seen::Other),
        (HEADERS_MAX - 1, Seen::Other),
        (HEADERS_MAX, Seen::Crowded),
    ] {
        let text = head(fields);
        assert_eq!(seen(&text).0, whole, "{fields}");
        for (at, _) in text.char_indices().skip(7) {
            assert_eq!(seen(&text[..at]).0, Seen::Part, "{:?}", &text[..at]);
        }
    }
}

proptest! {
    #[test]
    fn whatever_is_taken_has_one_reading(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "GET / HTTP/1.1", "POST / HTTP/1.0", "\r\n", "\n", "\r", " ", "\t", ":", "Host: x",
                "Content-Length: 1", "Content-Length:", "Transfer-Encoding: chunked", "a", "\u{0}",
            ]),
            0..16,
        )
    ) {
        for start in ["", "GET / HTTP/1.1\r\nHost: x\r\n"] {
            let text = format!("{start}{}\r\n\r\n", parts.concat());
            if let (Seen::Whole(head), out) = seen(&text) {
                prop_assert_eq!(crate::framing::check(&text.as_bytes()[..head.len]), Ok(()));
                prop_assert_eq!(crate::framing::check(out.as_bytes()), Ok(()));
            }
        }
    }
}
