//! `sim run` on real servers: namespaces, cgroups, probes, httpbin.

use std::time::{Duration, Instant};

use sim_core::journal::Kind;
use sim_node::cgroup::Hierarchy;
use sim_tests::clock::Clock;
use sim_tests::demo::config::{Addresses, render};
use sim_tests::demo::settings::Programs;
use sim_tests::demo::sim::Sim;
use sim_tests::load::Engine;
use sim_tests::load::arrivals::Constant;
use sim_tests::load::record::failures;
use sim_tests::load::request::{Mix, client};
use sim_tests::world::workspace::Workspace;
use sim_tests::world::{World, leftovers, privilege};

fn missing() -> Option<String> {
    privilege::missing().or_else(|| Programs::locate().err().map(|error| format!("{error:#}")))
}

#[test]
fn one_server_answers_every_request_and_a_stop_leaves_nothing() {
    if !privilege::or_skip("one server answers every request", missing()) {
        return;
    }
    let name = format!("sim-test-{}", std::process::id());
    let programs = Programs::locate().unwrap();
    let mut world = World::build().unwrap();
    assert_eq!(world.shared_network, None);
    world.servers.truncate(1);
    let hierarchy = Hierarchy::detect().unwrap();
    let (workspace, _) = Workspace::create(&std::env::temp_dir(), &name).unwrap();
    let folder = workspace.path();
    let addresses = Addresses::choose(&world).unwrap();
    let config = folder.join("sim.toml");
    let text = render(&world, &programs, addresses, folder, &name, true).unwrap();
    std::fs::create_dir(folder.join("data")).unwrap();
    std::fs::create_dir(folder.join("run")).unwrap();
    std::fs::write(&config, text).unwrap();

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let log = folder.join("sim.log");
        let mut sim = Sim::start(&programs.sim, &config, folder, &log).unwrap();
        sim.ready(Duration::from_secs(120)).await.unwrap();
        let mut journal = sim.journal().unwrap();
        let deadline = Instant::now() + Duration::from_secs(180);
        loop {
            assert!(
                Instant::now() < deadline,
                "no instance ready: {}",
                sim.log_tail()
            );
            let next = tokio::time::timeout(Duration::from_secs(1), journal.next()).await;
            sim.alive().unwrap();
            if next.is_ok_and(|entry| entry.unwrap().record.kind == Kind::Ready) {
                break;
            }
        }
        let client = client();
        let mix = loop {
            match Mix::learn(&client, addresses.listen).await {
                Ok(mix) => break mix,
                Err(error) => assert!(Instant::now() < deadline, "the proxy: {error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let engine = Engine::start(Clock::start(), addresses.listen, mix).unwrap();
        let pacer = engine.pace(Constant(100.0), 1, None).unwrap();
        while engine.ledger().sent() < 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        pacer.stop().unwrap();
        engine.settle().await;
        let ledger = engine.finish().unwrap();
        let records = ledger.since(0);
        assert_eq!(ledger.sent(), records.len() as u64);
        assert!(failures(&records).is_empty(), "{:?}", failures(&records));
        drop(journal);
        assert!(sim.stop(), "sim run did not stop in time");
    });
    let mark = folder.display().to_string();
    let left = leftovers::find(&hierarchy, &[&name], &mark, &world.namespaces());
    assert_eq!(left, Vec::<String>::new());
}
