//! The same conversations to nginx and to SIM, each before a recorder of its own: both must make the same of them.
//!
//! Where one of the two refuses what the other takes, or reads it otherwise, the oddity is listed here with its reason.
//! There is no reason for any difference in a conversation without an oddity.

use super::generator::{Conversation, Dice, NONE, conversation};
use super::peers::{self, Kind, Peer};
use super::recorder::{Record, Recorder};
use super::{MORE_PATIENCE, say, say_patiently};
use crate::world::{World, table};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How many conversations, and which: `cargo xtask conformance` sets both.
const COUNT: &str = "SIM_CONFORMANCE_COUNT";
const SEED: &str = "SIM_CONFORMANCE_SEED";
/// At the same time.
const TOGETHER: usize = 32;
/// Differences that are looked at again: a machine that pauses makes a few, and who reads otherwise makes many.
const AGAIN_MAX: usize = 100;

/// Which way a difference may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum May {
    /// SIM refuses it, nginx takes it.
    Refuse,
    /// SIM takes it, nginx refuses it.
    Take,
    /// Either takes it, and the last one sees it in another way.
    Differ,
}

/// Every difference there may be, with its reason.
const ALLOWED: &[(&str, May, &str)] = &[
    (
        "bare line feed",
        May::Refuse,
        "a line that doesn't end with CR LF is where parsers differ; RFC 9112, 2.2 lets a recipient take it",
    ),
    (
        "a line that ends with a line feed",
        May::Refuse,
        "a line that doesn't end with CR LF is where parsers differ; RFC 9112, 2.2 lets a recipient take it",
    ),
    (
        "a line feed before",
        May::Refuse,
        "a line that doesn't end with CR LF is where parsers differ; RFC 9112, 2.2 lets a recipient take it",
    ),
    (
        "a chunk's line feed",
        May::Refuse,
        "a line that doesn't end with CR LF is where parsers differ; RFC 9112, 2.2 lets a recipient take it",
    ),
    (
        "a chunk's end is a line feed",
        May::Refuse,
        "a line that doesn't end with CR LF is where parsers differ; RFC 9112, 2.2 lets a recipient take it",
    ),
    (
        "the last line is a line feed",
        May::Refuse,
        "a line that doesn't end with CR LF is where parsers differ; RFC 9112, 2.2 lets a recipient take it",
    ),
    (
        "an extension with a line feed",
        May::Refuse,
        "a line that doesn't end with CR LF is where parsers differ; RFC 9112, 2.2 lets a recipient take it",
    ),
    (
        "a host with an at sign",
        May::Refuse,
        "a user's name is no part of a host (RFC 9110, 4.2.4); nginx passes it on",
    ),
    (
        "no colon",
        May::Refuse,
        "no field (RFC 9112, 5.1); nginx drops the line",
    ),
    (
        "delimiter in a name",
        May::Refuse,
        "no field's name (RFC 9110, 5.1); nginx drops the line",
    ),
    (
        "control byte",
        May::Refuse,
        "no field's value (RFC 9110, 5.5); nginx passes it on, and the recorder refuses it",
    ),
    (
        "upper half in the target",
        May::Refuse,
        "no target (RFC 3986); nginx passes it on, and the recorder refuses it",
    ),
    (
        "HTTP/1.1 and a space",
        May::Refuse,
        "the first line is three words with one space between (RFC 9112, 3)",
    ),
    (
        "two spaces",
        May::Refuse,
        "the first line is three words with one space between (RFC 9112, 3)",
    ),
    (
        "no version",
        May::Refuse,
        "HTTP/0.9 is no request of HTTP/1 (RFC 9112, 2.3)",
    ),
    (
        "HTTP/1.2",
        May::Refuse,
        "no version that there is; nginx takes it for 1.1",
    ),
    (
        "a space behind a size",
        May::Refuse,
        "white space without an extension is no size (RFC 9112, 7.1.1)",
    ),
    (
        "a folded trailer",
        May::Refuse,
        "a folded field (RFC 9112, 5.2)",
    ),
    (
        "a chunk too short",
        May::Refuse,
        "nginx takes CR as data and LF for the end of a line",
    ),
    (
        "a length as trailer",
        May::Refuse,
        "served on the general path, and what was sent ahead behind it is left: the connection is closed",
    ),
    (
        "trailers",
        May::Refuse,
        "served on the general path, and what was sent ahead behind it is left: the connection is closed",
    ),
    (
        "expect",
        May::Refuse,
        "served on the general path, and what was sent ahead behind it is left: the connection is closed",
    ),
    (
        "unknown expectation",
        May::Refuse,
        "served on the general path, and what was sent ahead behind it is left: the connection is closed",
    ),
    (
        "upgrade",
        May::Refuse,
        "served on the general path, and what was sent ahead behind it is left: the connection is closed",
    ),
    (
        "unknown method",
        May::Refuse,
        "served on the general path, and what was sent ahead behind it is left: the connection is closed",
    ),
    (
        "a hop's own field",
        May::Refuse,
        "served on the general path, and what was sent ahead behind it is left: the connection is closed",
    ),
    (
        "TRACE",
        May::Take,
        "a method like others: the instance decides (RFC 9110, 9.3.8)",
    ),
    (
        "lower-case method",
        May::Take,
        "methods are any token, and differ by case (RFC 9110, 9.1): the instance decides",
    ),
    (
        "method with a digit",
        May::Take,
        "methods are any token (RFC 9110, 9.1): the instance decides",
    ),
    (
        "an empty host",
        May::Take,
        "an empty host is one (RFC 9112, 3.2)",
    ),
    (
        "absolute form",
        May::Differ,
        "the target goes on as it came (RFC 9112, 3.2.2 has servers take it); nginx sends the path alone",
    ),
];

/// What a proxy made of a conversation.
type Seen = Vec<Record>;

async fn ask_all(to: SocketAddr, recorder: &Recorder, all: &Arc<Vec<Conversation>>) -> Vec<Seen> {
    let (turns, mut tasks) = (Arc::new(Semaphore::new(TOGETHER)), JoinSet::new());
    for number in 0..all.len() {
        let (turns, all) = (turns.clone(), all.clone());
        tasks.spawn(async move {
            let _turn = turns.acquire().await.expect("open");
            say(to, &all[number].bytes).await;
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
    taken(recorder, all.len())
}

/// One of them again, alone.
async fn ask_again(to: SocketAddr, recorder: &Recorder, all: &[Conversation], at: usize) -> Seen {
    say_patiently(to, &all[at].bytes, MORE_PATIENCE).await;
    std::mem::take(&mut taken(recorder, all.len())[at])
}

/// What has come since the last look, by conversation.
fn taken(recorder: &Recorder, count: usize) -> Vec<Seen> {
    let mut seen = vec![Seen::new(); count];
    for record in recorder.take() {
        let number = record
            .target
            .split_once("/c/")
            .and_then(|(_, rest)| rest.split('/').next()?.parse::<usize>().ok());
        let number = number.unwrap_or_else(|| panic!("nobody's: {record:?}"));
        seen[number].push(record);
    }
    for seen in &mut seen {
        seen.sort_by(|one, other| one.target.cmp(&other.target));
    }
    seen
}

fn difference(nginx: &Seen, sim: &Seen) -> Option<May> {
    if nginx == sim {
        return None;
    }
    let within = |few: &Seen, many: &Seen| few.iter().all(|record| many.contains(record));
    Some(if sim.len() < nginx.len() && within(sim, nginx) {
        May::Refuse
    } else if nginx.len() < sim.len() && within(nginx, sim) {
        May::Take
    } else {
        May::Differ
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_and_sim_make_the_same_of_any_conversation() {
    if !peers::are_there() {
        return;
    }
    let number = |name: &str, otherwise| {
        let value = std::env::var(name).ok();
        value.map_or(otherwise, |value| value.parse().expect("a number"))
    };
    let (count, seed) = (number(COUNT, 5_000), number(SEED, 1));
    let mut dice = Dice(seed);
    let conversations = (0..count).map(|at| conversation(at as usize, &mut dice));
    let conversations: Arc<Vec<_>> = Arc::new(conversations.collect());

    let behind_nginx = Recorder::start().await;
    let peer = Peer::start(Kind::Nginx, behind_nginx.address).await;
    let mut by_nginx = ask_all(peer.address, &behind_nginx, &conversations).await;
    let behind_sim = Recorder::start().await;
    let (world, mut control) = World::start();
    let lines = [(1, behind_sim.address, 10_000, true)];
    control.publish(&table(1, 1, &lines)).await;
    let mut by_sim = ask_all(world.proxy, &behind_sim, &conversations).await;
    let mut again = 0;

    let mut differences = BTreeMap::<_, usize>::new();
    // By oddity and way, the first of each.
    let mut failures = BTreeMap::<_, (usize, String)>::new();
    for (at, conversation) in conversations.iter().enumerate() {
        let (nginx, sim) = (&mut by_nginx[at], &mut by_sim[at]);
        let is_allowed = |way: May| {
            let is_it = |(oddity, may, _): &&(&str, May, &str)| {
                *oddity == conversation.oddity && *may == way
            };
            ALLOWED.iter().find(is_it)
        };
        let mut way = difference(nginx, sim);
        if way.is_some_and(|way| is_allowed(way).is_none()) && again < AGAIN_MAX {
            // One of the two may have been too slow, where the machine paused.
            again += 1;
            *nginx = ask_again(peer.address, &behind_nginx, &conversations, at).await;
            *sim = ask_again(world.proxy, &behind_sim, &conversations, at).await;
            way = difference(nginx, sim);
        }
        let Some(way) = way else {
            continue;
        };
        if let Some((oddity, may, _)) = is_allowed(way) {
            *differences.entry((*oddity, *may)).or_default() += 1;
            continue;
        }
        let failure = failures
            .entry((conversation.oddity, way))
            .or_insert_with(|| {
                let sent = String::from_utf8_lossy(&conversation.bytes);
                (
                    0,
                    format!("sent: {sent:?}\n nginx: {nginx:?}\n sim: {sim:?}"),
                )
            });
        failure.0 += 1;
    }
    let decent = conversations.iter().filter(|c| c.oddity == NONE).count();
    let taken: usize = by_sim.iter().map(Vec::len).sum();
    println!(
        "conformance: seed {seed}: {count} conversations, {decent} of them decent, {taken} requests reached an instance"
    );
    for (oddity, may, why) in ALLOWED {
        let times = differences.get(&(*oddity, *may)).copied();
        let times = times.unwrap_or_default();
        println!("conformance: {times} times, {oddity}: {may:?}: {why}");
    }
    assert!(taken > count as usize, "hardly anything was taken");
    assert!(failures.is_empty(), "seed {seed}: {failures:#?}");
}
