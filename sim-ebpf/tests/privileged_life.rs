//! Death, stop and the last process, as the kernel tells of them; and all that is none of these.
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

use aya::maps::{Array, Map, MapData};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sim_ebpf::{Life, LifeFlags, Probes, WatchError};
use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    time::Instant,
};
use support::tools::cgroup1_mount;
use support::{Actor, Cgroup, Privileged, eventually, monotonic_ns};

/// Not a test: what [`Actor`] runs.
#[test]
fn actor() {
    support::play();
}

const ALIVE: Life = Life {
    died_ns: None,
    stopped: false,
    empty: false,
};

/// A shell in `cgroup` that runs `script` once it is told to, and says "done" behind it.
struct Shell {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Shell {
    fn start(cgroup: &Cgroup, script: &str) -> Self {
        let procs = cgroup.path.join("cgroup.procs");
        let script = format!(
            "echo 0 > {}; echo ready; read go; {script}; echo done; read end",
            procs.display()
        );
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut shell = Self { child, output };
        shell.hears("ready");
        shell
    }

    fn hears(&mut self, word: &str) {
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap() > 0 {
            if line.trim() == word {
                return;
            }
            line.clear();
        }
        panic!("the shell left before it was {word}");
    }

    /// Lets it run its script, to the end.
    fn run(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        self.hears("done");
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn watch(probes: &mut Probes, instance: u64, pid: u32, cgroup: &Cgroup) {
    probes.watch(instance, pid, Some(cgroup.id())).unwrap();
    assert_eq!(probes.life(instance), Some(ALIVE));
}

#[test]
fn a_killed_process_is_flagged_with_the_time_of_the_kill_before_kill_returns() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let cgroup = Cgroup::new("kill");
    let mut probes = privileged.load();
    let actor = Actor::start(&cgroup, "idle");
    watch(&mut probes, 3, actor.pid(), &cgroup);
    let flags = probes.life_flags().unwrap();
    assert!(!flags.is_down(3));
    let before = monotonic_ns();
    actor.signal(Signal::SIGKILL);
    let after = monotonic_ns();
    assert!(flags.is_down(3), "the flag is not up when kill(2) returns");
    let at = probes.life(3).unwrap().died_ns.unwrap();
    assert!(
        (before..=after).contains(&at),
        "{at} is not within the kill, {before} to {after}"
    );
    drop(actor);
    let left = eventually("the last process gone", || {
        probes.life(3).filter(|life| life.empty)
    });
    assert_eq!(
        left.died_ns,
        Some(at),
        "the first word stands, though the exit follows the kill"
    );
}

#[test]
fn a_process_that_leaves_by_itself_is_flagged() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let cgroup = Cgroup::new("exit");
    let mut probes = privileged.load();
    let mut actor = Actor::start(&cgroup, "idle");
    watch(&mut probes, 1, actor.pid(), &cgroup);
    actor.leave();
    eventually("the flag of a process that left", || {
        probes.life(1)?.died_ns
    });
    probes.unwatch(1);
    assert!(
        probes.life(1).unwrap().died_ns.is_some(),
        "who still asks must hear that it is dead"
    );
    assert!(matches!(
        probes.watch(2, actor.pid(), None),
        Err(WatchError::Gone(_))
    ));
    assert_eq!(probes.life(2), None);
}

#[test]
fn a_stopped_process_is_down_until_it_is_continued() {
    const ROUNDS: usize = 200;
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let cgroup = Cgroup::new("stop");
    let mut probes = privileged.load();
    let actor = Actor::start(&cgroup, "idle");
    watch(&mut probes, 4, actor.pid(), &cgroup);
    let flags = probes.life_flags().unwrap();
    let mut took_ns = Vec::new();
    for _ in 0..ROUNDS {
        let before = monotonic_ns();
        actor.signal(Signal::SIGSTOP);
        assert!(flags.is_down(4), "stopped");
        took_ns.push(monotonic_ns() - before);
        assert_eq!(
            probes.life(4),
            Some(Life {
                stopped: true,
                ..ALIVE
            })
        );
        actor.signal(Signal::SIGCONT);
        assert!(!flags.is_down(4), "continued");
    }
    took_ns.sort_unstable();
    eprintln!(
        "signal to flag seen: p50 {} ns, p99 {} ns",
        took_ns[ROUNDS / 2],
        took_ns[ROUNDS * 99 / 100]
    );
    // A death while stopped is a death.
    actor.signal(Signal::SIGSTOP);
    actor.signal(Signal::SIGKILL);
    actor_is_dead(&probes, 4);
}

fn actor_is_dead(probes: &Probes, instance: u64) {
    assert!(probes.life(instance).unwrap().died_ns.is_some());
}

#[test]
fn a_process_that_the_oom_killer_chose_is_flagged() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let cgroup = Cgroup::new("oom");
    let legacy = cgroup1_mount("memory").map(|mount| Cgroup::below(&mount, "oom"));
    let (limited, file) = match &legacy {
        Some(legacy) => (legacy, "memory.limit_in_bytes"),
        None => (&cgroup, "memory.max"),
    };
    let limit = limited.path.join(file);
    fs::write(&limit, (32 << 20).to_string()).unwrap();
    let mut probes = privileged.load();
    let mut actor = Actor::start(&cgroup, "hold 256");
    if let Some(legacy) = &legacy {
        actor.join(legacy);
    }
    watch(&mut probes, 5, actor.pid(), &cgroup);
    actor.go();
    eventually("the flag of the victim", || probes.life(5)?.died_ns);
    eventually("the last process gone", || {
        probes.life(5).filter(|life| life.empty)
    });
}

#[test]
fn what_is_no_death_is_not_flagged() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let cgroup = Cgroup::new("alive");
    let mut probes = privileged.load();
    let mut actor = Actor::start(&cgroup, "threads 50");
    let mut other = Actor::start(&cgroup, "idle");
    watch(&mut probes, 7, actor.pid(), &cgroup);
    for signal in [Signal::SIGCHLD, Signal::SIGWINCH, Signal::SIGCONT] {
        actor.signal(signal);
    }
    // Its threads exit, and a neighbour in its cgroup dies.
    actor.go();
    actor.done();
    probes.watch(8, other.pid(), None).unwrap();
    other.leave();
    eventually("the flag of the neighbour", || probes.life(8)?.died_ns);
    assert_eq!(probes.life(7), Some(ALIVE));

    // A handled SIGSEGV (as the JVM and Go have them), an ignored SIGTERM, both from inside the
    // cgroup; helpers that exit, crash and are killed by it; a stop that is ignored.
    let mut shell = Shell::start(
        &cgroup,
        "trap : SEGV; trap '' TERM TSTP; kill -SEGV $$; kill -TERM $$; kill -TSTP $$; \
         (exit 3); sh -c 'kill -ABRT $$'; sleep 100 & kill -KILL $!; wait",
    );
    watch(&mut probes, 9, shell.child.id(), &cgroup);
    shell.run();
    assert_eq!(probes.life(9), Some(ALIVE));
    // A sender inside the cgroup is no mitigation either.
    let mut killer = Shell::start(&cgroup, &format!("kill -KILL {}", shell.child.id()));
    killer.run();
    actor_is_dead(&probes, 9);
    assert_eq!(probes.life(7), Some(ALIVE));
}

#[test]
fn a_signal_that_is_refused_or_blocked_is_no_death() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let cgroup = Cgroup::new("refused");
    let mut probes = privileged.load();
    let mut init = Command::new("unshare")
        .args(["--fork", "--pid", "--kill-child", "sh", "-c"])
        // The first process of a pid namespace is safe from within.
        .arg("read go; kill -KILL 1; kill -STOP 1; echo $? survived; read end")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let children = format!("/proc/{0}/task/{0}/children", init.id());
    let inside: u32 = eventually("the first process", || {
        fs::read_to_string(&children).unwrap().trim().parse().ok()
    });
    probes.watch(21, inside, None).unwrap();
    init.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let mut said = String::new();
    let mut output = BufReader::new(init.stdout.take().unwrap());
    output.read_line(&mut said).unwrap();
    assert!(said.contains("survived"), "{said}");
    assert_eq!(probes.life(21), Some(ALIVE));

    let mut deaf = Shell::start(
        &cgroup,
        "exec env --block-signal sh -c 'echo blocked; read end'",
    );
    watch(&mut probes, 22, deaf.child.id(), &cgroup);
    deaf.child
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"go\n")
        .unwrap();
    deaf.hears("blocked");
    let deaf_pid = Pid::from_raw(deaf.child.id().cast_signed());
    for signal in [
        Signal::SIGTERM,
        Signal::SIGSEGV,
        Signal::SIGABRT,
        Signal::SIGTSTP,
    ] {
        kill(deaf_pid, signal).unwrap();
    }
    // Nobody may not.
    let refused = Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
        ])
        .args(["kill", "-KILL", &deaf.child.id().to_string()])
        .output()
        .unwrap();
    assert!(!refused.status.success(), "{refused:?}");
    assert_eq!(probes.life(22), Some(ALIVE));
    deaf.child.kill().unwrap();
    actor_is_dead(&probes, 22);
    init.kill().unwrap();
    init.wait().unwrap();
}

#[test]
fn a_process_id_that_is_used_again_is_another_process() {
    const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let (cgroup, other) = (Cgroup::new("first"), Cgroup::new("second"));
    let mut probes = privileged.load();
    let first = Shell::start(&cgroup, "true");
    let pid = first.child.id();
    watch(&mut probes, 31, pid, &cgroup);
    drop(first);
    let died_ns = probes.life(31).unwrap().died_ns;
    assert!(died_ns.is_some());
    // Whoever forks first gets the number, so it may take more than one try.
    let second = eventually("the same number again", || {
        fs::write(LAST_PID, (pid - 1).to_string()).unwrap();
        let shell = Shell::start(&other, "true");
        (shell.child.id() == pid).then_some(shell)
    });
    // A stranger as yet, and the first one stays dead.
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGSTOP).unwrap();
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGCONT).unwrap();
    assert_eq!(probes.life(31).unwrap().died_ns, died_ns);
    watch(&mut probes, 32, pid, &other);
    assert_eq!(probes.life(31).unwrap().died_ns, died_ns);
    probes.unwatch(31);
    assert_eq!(probes.life(32), Some(ALIVE));
    drop(second);
    actor_is_dead(&probes, 32);
}

#[test]
fn the_main_process_and_the_last_one_are_told_apart() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let cgroup = Cgroup::new("last");
    let nested = Cgroup::below(&cgroup.path, "nested");
    let mut probes = privileged.load();
    let main = Actor::start(&cgroup, "idle");
    let worker = Actor::start(&nested, "idle");
    watch(&mut probes, 11, main.pid(), &cgroup);
    drop(main);
    eventually("the main process dead", || probes.life(11)?.died_ns);
    assert!(
        !probes.life(11).unwrap().empty,
        "a worker in a nested cgroup lives"
    );
    drop(worker);
    eventually("the last process gone", || {
        probes.life(11).filter(|life| life.empty)
    });
}

#[test]
fn a_new_instance_begins_afresh_and_a_late_reader_sees_that_its_own_is_gone() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let cgroup = Cgroup::new("again");
    let mut config = privileged.config();
    config.slots_max = 3;
    let mut probes = Probes::load(&config).unwrap();
    let flags = probes.life_flags().unwrap();
    let first = Actor::start(&cgroup, "idle");
    let again = Actor::start(&cgroup, "idle");
    watch(&mut probes, 1, first.pid(), &cgroup);
    assert!(matches!(
        probes.watch(2, first.pid(), None),
        Err(WatchError::AlreadyWatched { instance: 1, .. })
    ));
    // Four slots: 5 comes round to that of 1.
    assert!(matches!(
        probes.watch(5, again.pid(), None),
        Err(WatchError::SlotTaken { instance: 1 })
    ));
    first.signal(Signal::SIGKILL);
    assert!(flags.is_down(1));
    probes.unwatch(1);
    watch(&mut probes, 5, again.pid(), &cgroup);
    assert!(!flags.is_down(5), "a fresh one");
    assert!(!flags.is_down(1), "nothing is known of it any more");
    assert_eq!((flags.life(1), flags.life(9)), (None, None));
    // What is still to come of the first is not the second's: its exit, and a reuse of its pid.
    drop(first);
    assert_eq!(probes.life(5), Some(ALIVE));
    assert!(matches!(
        probes.watch(1 << 40, again.pid(), None),
        Err(WatchError::NoSuchInstance(_))
    ));
}

#[test]
fn another_process_reads_by_a_descriptor_that_cannot_write() {
    let Some(privileged) = Privileged::enter() else {
        return;
    };
    let cgroup = Cgroup::new("reader");
    let mut probes = privileged.load();
    let actor = Actor::start(&cgroup, "idle");
    watch(&mut probes, 6, actor.pid(), &cgroup);
    let descriptor = probes.life_descriptor().unwrap();
    let flags = LifeFlags::from_descriptor(&descriptor).unwrap();
    assert!(!flags.is_down(6));
    actor.signal(Signal::SIGKILL);
    assert!(flags.is_down(6));
    assert_eq!(flags.life(6), probes.life(6));

    let map = MapData::from_fd(descriptor.try_clone().unwrap()).unwrap();
    let mut array: Array<_, [u64; 2]> = Map::Array(map).try_into().unwrap();
    assert!(array.set(6, [0, 0], 0).is_err(), "it can be written");
    assert!(flags.is_down(6));
    assert!(
        LifeFlags::from_descriptor(fs::File::open("/dev/null").unwrap()).is_err(),
        "anything can be mapped"
    );

    // What it costs to read, beside the loop alone.
    const READS: u64 = 20_000_000;
    let time = |is_down: &dyn Fn(u64) -> bool| {
        let start = Instant::now();
        let count = (0..READS)
            .filter(|&i| is_down(std::hint::black_box(i & 7)))
            .count();
        (start.elapsed().as_nanos() as f64 / READS as f64, count)
    };
    let (alone_ns, _) = time(&|instance| instance == 6);
    let (read_ns, down) = time(&|instance| flags.is_down(instance));
    eprintln!("read: {read_ns:.2} ns each, of which the loop {alone_ns:.2}");
    assert_eq!(down as u64, READS / 8);
    // They may outlive the probes.
    drop(probes);
    assert!(flags.is_down(6));
}
