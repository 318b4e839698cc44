//! Sessions that stay with an instance, and policies, over real connections.

use crate::process::{POLICY, STICKY};
use crate::world::{Load, PATIENCE, World, pair};
use hyper::Method;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// An answer: which instance, and the cookie that it gives, if it does.
#[derive(Debug)]
struct Served {
    by: String,
    cookie: Option<String>,
}

/// Asks on a connection of its own. `fields` are lines of the request's head.
async fn ask(proxy: SocketAddr, version: &str, fields: &str) -> Served {
    let mut stream = TcpStream::connect(proxy).await.expect("it listens");
    let request = format!("GET / {version}\r\nHost: x\r\nConnection: close\r\n{fields}\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    let read = timeout(PATIENCE, stream.read_to_string(&mut answer));
    read.await.expect("in time").expect("text");
    let (head, by) = answer.split_once("\r\n\r\n").expect("an answer");
    let cookie = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("set-cookie").then_some(value)
    });
    Served {
        by: by.to_owned(),
        cookie: cookie.map(str::to_owned),
    }
}

/// Both ways of a request: the second is for the general path.
const VERSIONS: [&str; 2] = ["HTTP/1.1", "HTTP/1.0"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cookie_is_given_and_keeps_its_session_through_a_shift() {
    let (world, mut control, ups) = World::with_two_and(5_000, &[(STICKY, "cookie:sim")]).await;
    let mut homes = BTreeMap::new();
    for n in 0..40 {
        let first = ask(world.proxy, VERSIONS[n % 2], "").await;
        let given = first.cookie.expect("a cookie for who has none");
        let (pair, attributes) = given.split_once("; ").expect("attributes");
        assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
        // It was served where its session lives, by either path, and is told nothing new.
        for version in VERSIONS {
            let again = ask(world.proxy, version, &format!("Cookie: a=b; {pair}\r\n")).await;
            assert_eq!(again.by, first.by);
            assert_eq!(again.cookie, None);
        }
        homes.insert(pair.to_owned(), first.by);
    }
    assert!(homes.values().any(|by| by == "i1") && homes.values().any(|by| by == "i2"));
    for (generation, first_bp) in [(2, 4_000), (3, 2_000), (4, 0)] {
        control.publish(&pair(generation, &ups, first_bp)).await;
        for (cookie, home) in &mut homes {
            let now = ask(world.proxy, "HTTP/1.1", &format!("Cookie: {cookie}\r\n")).await;
            assert!(
                now.by == *home || (home == "i1" && now.by == "i2"),
                "none goes back"
            );
            *home = now.by;
        }
    }
    assert!(homes.values().all(|by| by == "i2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_s_value_names_a_session_and_who_has_none_goes_by_weight() {
    let (world, _control, _ups) = World::with_two_and(5_000, &[(STICKY, "header:x-user")]).await;
    let mut seen = BTreeMap::<String, Vec<String>>::new();
    for n in 0..60 {
        let user = format!("u{}", n % 12);
        let fields = format!("X-User: {user}\r\n");
        let served = ask(world.proxy, VERSIONS[n / 12 % 2], &fields).await;
        assert_eq!(served.cookie, None);
        seen.entry(user).or_default().push(served.by);
    }
    for (user, by) in &seen {
        assert!(
            by.windows(2).all(|pair| pair[0] == pair[1]),
            "{user}: {by:?}"
        );
    }
    let mut without = vec![];
    for _ in 0..20 {
        without.push(ask(world.proxy, "HTTP/1.1", "").await.by);
    }
    assert!(without.iter().any(|by| by == "i1") && without.iter().any(|by| by == "i2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_s_address_names_a_session_until_its_instance_dies() {
    let (world, _control, [first, second]) =
        World::with_two_and(5_000, &[(STICKY, "source")]).await;
    let home = ask(world.proxy, "HTTP/1.1", "").await.by;
    for version in VERSIONS.repeat(5) {
        assert_eq!(ask(world.proxy, version, "").await.by, home);
    }
    let (dies, other) = if home == "i1" {
        (first, "i2")
    } else {
        (second, "i1")
    };
    dies.kill().await;
    for version in VERSIONS.repeat(5) {
        assert_eq!(ask(world.proxy, version, "").await.by, other);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_less_loaded_of_two_is_asked() {
    let settings = [(POLICY, "least-request")];
    let (world, mut control, ups) = World::with_two_and(10_000, &settings).await;
    // Requests that are never answered burden one of them.
    let hung: Vec<_> = (0..20)
        .map(|_| {
            let user = world.client();
            tokio::spawn(async move { user.get("/hang").await })
        })
        .collect();
    world
        .wait_for(|metrics| metrics.sum("sim_proxy_in_flight", &["i1"]) == 20.0)
        .await;
    control.publish(&pair(2, &ups, 5_000)).await;
    let (before, other_before) = (ups[0].counts.requests(), ups[1].counts.requests());
    let load = Load::start(&world, 4, &Method::GET);
    load.run(1_000).await;
    let (sent, failed) = load.end().await;
    assert_eq!(failed, 0);
    let burdened = ups[0].counts.requests() - before;
    assert_eq!(burdened + ups[1].counts.requests() - other_before, sent);
    // The quarter that draws it twice; half go there by weight.
    let share = burdened as f64 / sent as f64;
    assert!((0.2..0.3).contains(&share), "{share}");
    for task in hung {
        task.abort();
    }
}
