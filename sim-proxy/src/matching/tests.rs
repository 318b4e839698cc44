use super::*;
use proptest::prelude::*;

fn condition(text: &str) -> Condition {
    // HOST/PATH NAME=VALUE …, with `*` for any host.
    let mut words = text.split(' ');
    let target = words.next().expect("a word");
    let (host, path) = target.split_at(target.find('/').unwrap_or(target.len()));
    let host = (host != "*").then_some(host);
    let path = (!path.is_empty()).then_some(path);
    let fields = words.map(|word| word.split_once('=').expect("a field"));
    Condition::new(host, path, fields).expect("valid")
}

fn matcher(workloads: &[&[&str]]) -> Matcher {
    let all: Vec<Vec<Condition>> = workloads
        .iter()
        .map(|texts| texts.iter().map(|text| condition(text)).collect())
        .collect();
    Matcher::new(all.iter().map(Vec::as_slice))
}

/// The workload of `GET path` of `host` with the fields; `None` where there is none.
fn found(matcher: &Matcher, host: &str, path: &str, fields: &[(&str, &str)]) -> Option<usize> {
    let has = |name: &str, value: &[u8]| {
        fields
            .iter()
            .any(|(n, v)| n.eq_ignore_ascii_case(name) && v.as_bytes() == value)
    };
    match matcher.find(host.as_bytes(), path.as_bytes(), has) {
        Found::Workload(at) => Some(at),
        Found::None => None,
        Found::DotSegment => panic!("two readings: {path}"),
    }
}

#[test]
fn the_most_specific_condition_decides_in_whatever_order_they_stand() {
    let routes = matcher(&[
        &[],
        &["*/api"],
        &["*.shop.example"],
        &["*.eu.shop.example"],
        &["www.shop.example"],
        &["www.shop.example/api"],
        &["www.shop.example/api x-beta=1"],
        &["*/api/v2"],
    ]);
    let of = |host, path, fields: &[_]| found(&routes, host, path, fields);
    assert_eq!(of("other.example", "/", &[]), Some(0));
    assert_eq!(of("other.example", "/api/x?y=1", &[]), Some(1));
    assert_eq!(of("other.example", "/api/v2", &[]), Some(7));
    assert_eq!(
        of("a.shop.example", "/api/v2", &[]),
        Some(2),
        "the host before the path"
    );
    assert_eq!(of("a.b.shop.example", "/", &[]), Some(2));
    assert_eq!(of("a.eu.shop.example", "/", &[]), Some(3));
    assert_eq!(of("www.shop.example", "/apis", &[]), Some(4));
    assert_eq!(of("WWW.Shop.Example.:8080", "/api", &[]), Some(5));
    assert_eq!(of("www.shop.example", "/api", &[("X-Beta", "1")]), Some(6));
    assert_eq!(of("www.shop.example", "/api", &[("X-Beta", "10")]), Some(5));
    assert_eq!(of("shop.example", "/", &[]), Some(0), "not below itself");
    assert_eq!(of("eshop.example", "/", &[]), Some(0));
}

#[test]
fn without_a_condition_that_holds_there_is_no_workload() {
    let routes = matcher(&[&["a.example/x", "b.example x-key=k"]]);
    assert_eq!(found(&routes, "a.example", "/x", &[]), Some(0));
    assert_eq!(found(&routes, "a.example", "/", &[]), None);
    assert_eq!(found(&routes, "b.example", "/x", &[]), None);
    assert_eq!(found(&routes, "b.example", "/", &[("x-key", "k")]), Some(0));
    assert_eq!(found(&routes, "", "/x", &[]), None);
}

#[test]
fn ports_are_ignored_and_nothing_else_of_an_authority() {
    let routes = matcher(&[&["a.example"], &["[::1]"]]);
    for host in ["a.example", "a.example:", "a.example:65536", "A.EXAMPLE.:1"] {
        assert_eq!(found(&routes, host, "/", &[]), Some(0), "{host}");
    }
    assert_eq!(found(&routes, "[::1]", "/", &[]), Some(1));
    assert_eq!(found(&routes, "[::1]:80", "/", &[]), Some(1));
    for host in [
        "a.example:80:80",
        "a.example:x@b",
        "x@a.example",
        "a.example/",
        "::1",
        "[::1",
    ] {
        assert_eq!(found(&routes, host, "/", &[]), None, "{host}");
    }
}

#[test]
fn a_path_is_met_by_whole_segments_and_by_each_way_to_write_them() {
    let routes = matcher(&[&["*/api/"], &["*/a%2fb~"]]);
    for path in [
        "/api",
        "/api/",
        "/api?x",
        "/api//x",
        "/%61p%69/x",
        "/api/a%2Fb",
        "/api/.x",
        "/api/...",
    ] {
        assert_eq!(found(&routes, "", path, &[]), Some(0), "{path}");
    }
    for path in ["/a%2Fb~", "/a%2fb%7E/x"] {
        assert_eq!(found(&routes, "", path, &[]), Some(1), "{path}");
    }
    for path in [
        "/", "/apis", "/API", "//api", "/x/api", "/api%2Fx", "/api;x", "/api#x", "/a/b~", "*", "",
    ] {
        assert_eq!(found(&routes, "", path, &[]), None, "{path}");
    }
}

#[test]
fn a_path_with_a_dot_segment_in_any_disguise_is_nobody_s() {
    let routes = matcher(&[&["*/api"], &[]]);
    let none = |_: &str, _: &[u8]| false;
    for path in [
        "/api/../x",
        "/api/..",
        "/api/.",
        "/./api",
        "/..",
        "/api/%2e%2E/x",
        "/api/.%2e",
        "/api/..%2fx",
        "/api%2f../x",
        "/api/..\\x",
        "/api\\..\\x",
        "/api%5c..%5Cx",
        "/api/..;a=b/x",
        "/x/../api?y",
        "/api/%2e",
    ] {
        assert_eq!(
            routes.find(b"", path.as_bytes(), none),
            Found::DotSegment,
            "{path}"
        );
    }
    for path in [
        "/api/...",
        "/api/.a",
        "/api/a..",
        "/api/x?a=/../b",
        "/a.b/c..d",
        "/api/%252e%252e/x",
        ".",
        "..",
    ] {
        assert_ne!(
            routes.find(b"", path.as_bytes(), none),
            Found::DotSegment,
            "{path}"
        );
    }
    // Where no path counts, paths are not looked at.
    let hosts = matcher(&[&["a.example"], &["b.example"]]);
    assert_eq!(hosts.find(b"b.example", b"/../x", none), Found::Workload(1));
}

#[test]
fn one_workload_without_conditions_gets_all_without_a_look() {
    let routes = matcher(&[&[]]);
    assert_eq!(routes.all, Some(0));
    assert_eq!(found(&routes, "x y", "/../%", &[]), Some(0));
    assert_eq!(matcher(&[&["*/"]]).all, Some(0), "the root is no condition");
    assert_eq!(matcher(&[&[], &["a.example"]]).all, None);
}

#[test]
fn what_two_workloads_both_ask_for_is_told() {
    let of = |workloads: &[&[&str]]| {
        let all: Vec<Vec<Condition>> = workloads
            .iter()
            .map(|texts| texts.iter().map(|text| condition(text)).collect())
            .collect();
        shared(all.iter().map(Vec::as_slice)).map(|(what, who)| (what.to_string(), who))
    };
    assert_eq!(of(&[&[], &["*/api"]]), None);
    assert_eq!(
        of(&[&[], &["a.example"], &[]]),
        Some(("*/".to_owned(), [0, 2]))
    );
    assert_eq!(of(&[&["*/"], &[]]), Some(("*/".to_owned(), [0, 1])));
    let twice: &[&[&str]] = &[&["A.example/%61pi/ X=1 y=2"], &["a.example/api Y=2 x=1"]];
    assert_eq!(
        of(twice),
        Some(("a.example/api/ x: 1 y: 2".to_owned(), [0, 1]))
    );
    assert_eq!(of(&[&["a.example x=1"], &["a.example x=2"]]), None);
}

#[test]
fn conditions_that_can_t_hold_are_refused() {
    let host = |host| Condition::new(Some(host), None, []).map_err(|wrong| wrong.part);
    for bad in [
        "",
        "a.example:80",
        "a..b",
        "*",
        "*.",
        "*example",
        "a.*.b",
        "a b",
        "a.example.",
        "[::g]",
        "*.[::1]",
        "ä",
    ] {
        assert_eq!(host(bad), Err("host"), "{bad}");
    }
    let path = |path| Condition::new(None, Some(path), []).map_err(|wrong| wrong.part);
    for bad in [
        "", "api", "/a?b", "/a#b", "/a b", "/a/../b", "/a/%2e", "/ä", "/a\\b",
    ] {
        assert_eq!(path(bad), Err("path"), "{bad}");
    }
    let fields = |fields: &[(&'static str, &'static str)]| {
        Condition::new(None, None, fields.iter().copied()).map_err(|wrong| wrong.part)
    };
    let bad: [&[(&str, &str)]; 6] = [
        &[("", "x")],
        &[("a b", "x")],
        &[("Host", "x")],
        &[("a", "x\n")],
        &[("a", " x")],
        &[("a", "1"), ("A", "2")],
    ];
    for bad in bad {
        assert_eq!(fields(bad), Err("header"), "{bad:?}");
    }
}

proptest! {
    /// A plain reading of what the module's documentation says, beside the one that runs.
    #[test]
    fn a_prefix_holds_if_its_decoded_segments_are_the_first(
        prefix in "(/[a-c]{1,2}){1,3}",
        path in "(/([a-c]|%6[1-3]|%2[fF]){0,3}){0,4}",
    ) {
        let decode = |segment: &str| {
            let plain = segment.replace("%61", "a").replace("%62", "b").replace("%63", "c");
            plain.replace("%2f", "%2F")
        };
        let segments = |path: &str| path.split('/').map(decode).collect::<Vec<_>>();
        let expected = segments(&path).starts_with(&segments(&prefix));
        let routes = matcher(&[&[&format!("*{prefix}")]]);
        prop_assert_eq!(found(&routes, "", &path, &[]).is_some(), expected);
    }

    #[test]
    fn any_bytes_are_judged(host in prop::collection::vec(any::<u8>(), 0..40), path in prop::collection::vec(any::<u8>(), 0..40)) {
        matcher(&[&["*.a/b"], &["*/%2f"]]).find(&host, &path, |_, _| true);
    }
}
