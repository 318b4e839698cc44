//! Why is it slow? Waits for want of quota and waits for a neighbour, requests, migrations, reclaim: each
//! held against a cause that the test itself makes, or another source in the same run.
//!
//! Needs root and `SIM_EBPF_OBJECT`; with `SIM_REQUIRE_PRIVILEGED=1` a lack of either is a failure.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    dead_code,
    reason = "a test's helpers are tests too, and each file uses its part of them"
)]

mod support;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use sim_ebpf::{Counters, Group, Probes};
use std::{
    collections::HashMap,
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};
use support::tools::{Loop, cgroup1_mount, write_direct_in};
use support::{Actor, BLOCK_BYTES, BLOCKS, Cgroup, Privileged, assert_close, eventually};

/// Not a test: what [`Actor`] runs.
#[test]
fn actor() {
    support::play();
}

/// A fifth of a CPU for the tasks of a cgroup, and the kernel's account of the throttled time.
struct Quota<'own> {
    own: &'own Cgroup,
    /// Where the controller is on another hierarchy: what the tasks must be in as well.
    legacy: Option<Cgroup>,
}

impl<'own> Quota<'own> {
    /// `None` if no cgroup has a cpu controller.
    fn of(own: &'own Cgroup) -> Option<Self> {
        let Some(mount) = cgroup1_mount("cpu") else {
            fs::write(own.path.join("cpu.max"), "4000 20000").ok()?;
            return Some(Self { own, legacy: None });
        };
        let legacy = Cgroup::below(&mount, "quota");
        fs::write(legacy.path.join("cpu.cfs_period_us"), "20000").unwrap();
        fs::write(legacy.path.join("cpu.cfs_quota_us"), "4000").unwrap();
        let legacy = Some(legacy);
        Some(Self { own, legacy })
    }

    fn hold(&self, actor: &Actor) {
        if let Some(legacy) = &self.legacy {
            actor.join(legacy);
        }
    }

    fn throttled_ns(&self) -> u64 {
        let (cgroup, name, unit_ns) = match &self.legacy {
            Some(legacy) => (legacy, "throttled_time ", 1),
            None => (self.own, "throttled_usec ", 1_000),
        };
        let stat = fs::read_to_string(cgroup.path.join("cpu.stat")).unwrap();
        let value = stat.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap().trim().parse::<u64>().unwrap() * unit_ns
    }
}

fn watch(probes: &Probes, cgroup: &Cgroup, span: Duration) -> (Counters, u64) {
    probes.settle();
    let (start, before) = (Instant::now(), probes.read(cgroup.id()).unwrap());
    thread::sleep(span);
    probes.settle();
    let after = probes.read(cgroup.id()).unwrap();
    (after.since(&before), start.elapsed().as_nanos() as u64)
}

#[test]
fn waits_for_want_of_quota_are_the_throttled_time_and_nobody_elses_fault() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let cgroup = Cgroup::new("throttled");
    let quota = Quota::of(&cgroup).expect("a cgroup with a cpu controller");
    let mut probes = privileged.load();
    probes.track(cgroup.id()).unwrap();
    let mut actor = Actor::start(&cgroup, "spin-on 1");
    quota.hold(&actor);
    actor.go();
    thread::sleep(Duration::from_millis(300));
    let throttled_before = quota.throttled_ns();
    let (spent, wall_ns) = watch(&probes, &cgroup, Duration::from_secs(3));
    let throttled = quota.throttled_ns() - throttled_before;
    eprintln!(
        "on CPU {} %, throttled {} %, waiting {} % of the time",
        spent.on_cpu_ns * 100 / wall_ns,
        spent.throttled_ns * 100 / wall_ns,
        spent.run_queue_delay_ns * 100 / wall_ns
    );
    assert_close("throttled ns", spent.throttled_ns, throttled, 0.10);
    assert!(spent.throttled_waits > 50, "{}", spent.throttled_waits);
    assert!(spent.run_queue_delay_ns < spent.throttled_ns / 2);
    let blamed: u64 = probes
        .neighbours()
        .iter()
        .filter(|wait| wait.waiting == cgroup.id())
        .map(|wait| wait.wait_ns)
        .sum();
    assert!(blamed < spent.throttled_ns / 2, "{blamed} ns");
}

#[test]
fn a_neighbour_that_holds_the_cpu_is_named() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let (victim, bully) = (Cgroup::new("victim"), Cgroup::new("bully"));
    let mut probes = privileged.load();
    probes.track(victim.id()).unwrap();
    let mut actors = [
        Actor::start(&victim, "spin-on 1"),
        Actor::start(&bully, "spin-on 1"),
        Actor::start(&bully, "spin-on 1"),
    ];
    actors.iter_mut().for_each(Actor::go);
    let (spent, wall_ns) = watch(&probes, &victim, Duration::from_secs(3));
    let mut waits = probes.neighbours();
    waits.retain(|wait| wait.waiting == victim.id());
    waits.sort_by_key(|wait| std::cmp::Reverse(wait.wait_ns));
    let worst = waits.first().unwrap();
    assert_eq!(worst.running, bully.id(), "{waits:?}");
    assert!(worst.wait_ns > wall_ns / 3, "{waits:?}");
    assert!(
        worst.wait_ns > spent.run_queue_delay_ns / 2,
        "{waits:?} of {}",
        spent.run_queue_delay_ns
    );
    assert_eq!(spent.throttled_ns, 0);
    // What is untracked is forgotten.
    probes.untrack(victim.id());
    assert!(
        probes
            .neighbours()
            .iter()
            .all(|wait| wait.waiting != victim.id())
    );
    assert_eq!(probes.losses().total(), 0);
}

#[test]
fn the_neighbour_is_named_to_threads_that_wait_once_in_their_life() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let (victim, bully) = (Cgroup::new("short-lived"), Cgroup::new("bully"));
    let mut probes = privileged.load();
    probes.track(victim.id()).unwrap();
    let mut bullies = [
        Actor::start(&bully, "spin-on 1"),
        Actor::start(&bully, "spin-on 1"),
    ];
    let mut actor = Actor::start(&victim, "thread-per-turn 100");
    // A new thread of equal rank hardly waits.
    for thread in fs::read_dir(format!("/proc/{}/task", actor.pid())).unwrap() {
        let mut renice = Command::new("renice");
        renice
            .args(["-n", "10", "-p"])
            .arg(thread.unwrap().file_name());
        assert!(renice.output().unwrap().status.success());
    }
    bullies.iter_mut().for_each(Actor::go);
    let before = probes.read(victim.id()).unwrap();
    actor.go();
    actor.done();
    probes.settle();
    let spent = probes.read(victim.id()).unwrap().since(&before);
    // Others on this machine hold that CPU too, now and then; each is named.
    let named_ns = |by: Option<u64>| -> u64 {
        let waits = probes.neighbours().into_iter();
        let waits = waits.filter(|wait| wait.waiting == victim.id());
        let waits = waits.filter(|wait| by.is_none_or(|by| wait.running == by));
        waits.map(|wait| wait.wait_ns).sum()
    };
    let (named, bullied) = (named_ns(None), named_ns(Some(bully.id())));
    let waited = spent.run_queue_delay_ns;
    eprintln!("{named} ns of {waited} named, {bullied} of them the bully's");
    assert!(named > waited * 8 / 10, "{named} of {waited}");
    assert!(bullied > named / 2, "{bullied} of {named}");
}

#[test]
fn tasks_in_a_table_by_their_ids_are_charged_alike() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let cgroup = Cgroup::new("by-id");
    let mut config = privileged.config();
    config.tasks_by_pid = true;
    let mut probes = Probes::load(&config).unwrap();
    probes.track(cgroup.id()).unwrap();
    // Some that live long and switch often, and many that hardly live.
    for role in ["ping-pong 30000", "threads 3000"] {
        let mut actor = Actor::start(&cgroup, role);
        let before = (probes.read(cgroup.id()).unwrap(), cgroup.cpu_usage_ns());
        actor.go();
        actor.done();
        actor.rest();
        probes.settle();
        let spent = probes.read(cgroup.id()).unwrap().since(&before.0);
        let stat = cgroup.cpu_usage_ns() - before.1;
        assert_close(role, spent.on_cpu_ns, stat, 0.02);
        assert_eq!(spent.run_queue_hist.total(), spent.run_queue_waits);
        assert!(spent.switches > 3_000, "{}", spent.switches);
        drop(actor);
    }
    assert_eq!(probes.losses().total(), 0);
}

#[test]
fn threads_that_wait_once_in_their_life_for_want_of_quota_blame_nobody() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let cgroup = Cgroup::new("throttled");
    let quota = Quota::of(&cgroup).expect("a cgroup with a cpu controller");
    let mut probes = privileged.load();
    probes.track(cgroup.id()).unwrap();
    let mut actor = Actor::start(&cgroup, "thread-per-turn 400");
    quota.hold(&actor);
    let start = Instant::now();
    let (before, throttled_before) = (probes.read(cgroup.id()).unwrap(), quota.throttled_ns());
    actor.go();
    actor.done();
    probes.settle();
    let spent = probes.read(cgroup.id()).unwrap().since(&before);
    let throttled = quota.throttled_ns() - throttled_before;
    let idle = start.elapsed().as_nanos() as u64 - spent.on_cpu_ns;
    eprintln!("{throttled} ns by the kernel's account; none of them ran for {idle} ns");
    // Old kernels (6.1) go on counting on a CPU that the last task has left. One thread of these is always
    // running or waiting, so what they can have waited is known without it.
    let throttled = throttled.min(idle);
    // The own waits go on until there is a CPU as well.
    assert_close("throttled ns", spent.throttled_ns, throttled, 0.15);
    let waits = probes.neighbours();
    let blamed = waits.iter().filter(|wait| wait.waiting == cgroup.id());
    let blamed: u64 = blamed.map(|wait| wait.wait_ns).sum();
    eprintln!("{blamed} ns blamed on others");
    assert!(blamed < throttled / 4, "{blamed} of {throttled}");
}

/// How long a thread has run, in nanoseconds, and the CPU it is on, by its folder in `/proc`.
fn ran_and_where(task: &Path) -> (u64, usize) {
    let schedstat = fs::read_to_string(task.join("schedstat")).unwrap();
    let stat = fs::read_to_string(task.join("stat")).unwrap();
    // Field 39; the second may hold spaces and ends with the last parenthesis.
    let fields = stat.rsplit_once(") ").unwrap().1;
    let cpu = fields.split(' ').nth(36).unwrap();
    let ran_ns = schedstat.split(' ').next().unwrap();
    (ran_ns.parse().unwrap(), cpu.parse().unwrap())
}

#[test]
fn a_task_that_is_moved_to_another_cpu_is_a_migration() {
    const MOVES: u64 = 40;
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    if thread::available_parallelism().unwrap().get() < 2 {
        eprintln!("SKIPPED (nothing to move to on one CPU)");
        return;
    }
    let cgroup = Cgroup::new("moved");
    let mut probes = privileged.load();
    probes.track(cgroup.id()).unwrap();
    let mut actor = Actor::start(&cgroup, "spin");
    let process = actor.pid();
    let pin = |cpu: usize| {
        let mut set = CpuSet::new();
        set.set(cpu).unwrap();
        for task in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
            let name = task.unwrap().file_name();
            let thread = name.to_str().unwrap().parse().unwrap();
            sched_setaffinity(Pid::from_raw(thread), &set).unwrap();
        }
    };
    let threads = || {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
        tasks.map(|task| task.unwrap().path())
    };
    let started: HashMap<_, _> = threads()
        .map(|at| (at.clone(), ran_and_where(&at).0))
        .collect();
    pin(0);
    actor.go();
    // Not the one that has merely taken long to start.
    let spinner = eventually("a thread that spins", || {
        threads().find(|at| ran_and_where(at).0 > started[at] + 50_000_000)
    });
    let before = probes.read(cgroup.id()).unwrap();
    for at in 1..=MOVES {
        let cpu = (at % 2) as usize;
        pin(cpu);
        // It is there, and has run there: only then is its next turn elsewhere a migration.
        let arrived_ns = eventually("it is moved", || {
            let (ran_ns, on) = ran_and_where(&spinner);
            (on == cpu).then_some(ran_ns)
        });
        eventually("it runs there", || {
            (ran_and_where(&spinner).0 > arrived_ns).then_some(())
        });
    }
    let moved = probes.read(cgroup.id()).unwrap().since(&before).migrations;
    eprintln!("{moved} migrations for {MOVES} moves");
    // The spinning thread for certain; its harness's other threads perhaps too.
    assert!((MOVES - 1..=3 * MOVES).contains(&moved), "{moved}");
}

#[test]
fn time_lost_to_reclaim_is_charged_to_who_hit_the_limit() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let cgroup = Cgroup::new("reclaim");
    let legacy = cgroup1_mount("memory").map(|mount| Cgroup::below(&mount, "limit"));
    let limit = match &legacy {
        Some(legacy) => legacy.path.join("memory.limit_in_bytes"),
        None => cgroup.path.join("memory.max"),
    };
    fs::write(limit, (24 << 20).to_string()).unwrap();
    let mut probes = privileged.load();
    assert!(probes.is_active(Group::Memory), "{:?}", probes.status());
    probes.track(cgroup.id()).unwrap();
    let file = std::env::temp_dir().join(format!("sim-reclaim-{}", std::process::id()));
    let mut actor = Actor::start(&cgroup, &format!("write-file {} 96", file.display()));
    if let Some(legacy) = &legacy {
        actor.join(legacy);
    }
    actor.go();
    actor.done();
    let counted = probes.read(cgroup.id()).unwrap();
    fs::remove_file(file).ok();
    eprintln!("{} reclaims, {} ns", counted.reclaims, counted.reclaim_ns);
    assert!(counted.reclaims > 0 && counted.reclaim_ns > 0);
}

#[test]
fn latency_of_a_throttled_device_is_what_the_writer_sees() {
    // 64 KiB each: 16 to a second.
    const BYTES_PER_SECOND: u32 = 1 << 20;
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let cgroup = Cgroup::new("slow-device");
    let slow = Loop::new("slow-device", (BLOCKS * BLOCK_BYTES) as u64);
    let limited = slow.throttle(&cgroup, BYTES_PER_SECOND);
    let mut probes = privileged.load();
    probes.track(cgroup.id()).unwrap();
    let mut writer = Actor::start(
        &cgroup,
        &format!("write-direct-timed {}", slow.device.display()),
    );
    if let Some(limited) = &limited {
        writer.join(limited);
    }
    let before = probes.read(cgroup.id()).unwrap();
    writer.go();
    let took = writer.hears("took ");
    let counted = probes.read(cgroup.id()).unwrap().since(&before);
    let took: Vec<u64> = took.split(' ').map(|ns| ns.parse().unwrap()).collect();
    // Where the cgroup is that of the bio, the disk below has requests for it too, quick ones.
    let layers = if limited.is_some() { 1 } else { 2 };
    assert_close(
        "writes",
        counted.block_write_ops,
        layers * BLOCKS as u64,
        0.02,
    );
    let sum: u64 = took.iter().sum();
    let tolerance = 0.05 * layers as f64;
    assert_close("block latency ns", counted.block_latency_ns, sum, tolerance);
    // Slow for being throttled, and the median is one of theirs.
    let expected_ns = BLOCK_BYTES as u64 * 1_000_000_000 / u64::from(BYTES_PER_SECOND);
    assert_close("ns per write", sum / BLOCKS as u64, expected_ns, 0.2);
    // In the middle of the slow ones.
    let middle = 1.0 - 0.5 / layers as f64;
    let median = counted.block_hist.quantile_ns(middle).unwrap();
    let mut sorted = took;
    sorted.sort_unstable();
    let truth = sorted[BLOCKS / 2] as f64;
    assert!(
        median > truth / 2.0 && median < truth * 2.0,
        "{median} for {truth}"
    );
}

#[test]
fn requests_that_others_queue_on_the_same_disk_are_theirs() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let (own, strange) = (Cgroup::new("reader"), Cgroup::new("stranger"));
    let mut probes = privileged.load();
    probes.track(own.id()).unwrap();
    let file = write_direct_in(&own);
    let read = |threads| format!("read-direct {threads} {}", file.display());
    // So many that requests queue, and whoever is next at the device issues them.
    let mut strangers = Actor::start(&strange, &read(16));
    let mut reader = Actor::start(&own, &read(1));
    let before = probes.read(own.id()).unwrap();
    strangers.go();
    reader.go();
    let done: u64 = reader.hears("reads ").parse().unwrap();
    let counted = probes.read(own.id()).unwrap().since(&before).block_read_ops;
    let others: u64 = strangers.hears("reads ").parse().unwrap();
    eprintln!("{counted} of {done} reads beside {others}");
    fs::remove_file(&file).unwrap();
    // The file system may read for itself at first.
    assert!(counted <= done + 3, "{counted} for {done}");
    assert_close("reads", counted, done, 0.02);
}

#[test]
fn time_in_the_block_queue_is_counted_where_requests_are_stamped() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let cgroup = Cgroup::new("queue");
    let mut probes = privileged.load();
    probes.track(cgroup.id()).unwrap();
    let file = write_direct_in(&cgroup);
    let counted = probes.read(cgroup.id()).unwrap();
    fs::remove_file(file).unwrap();
    eprintln!(
        "{} of {} stamped",
        counted.block_queue_hist.total(),
        counted.block_ops()
    );
    // Every kernel with I/O statistics stamps them all, and no request is issued in the moment it is made.
    assert_eq!(counted.block_queue_hist.total(), counted.block_ops());
    assert!(counted.block_queue_ns > 0 && counted.block_ops() > 0);
}
