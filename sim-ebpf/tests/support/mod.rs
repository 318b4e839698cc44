//! Cgroups, child processes and the rule for tests that need privileges.

pub(crate) mod tools;

use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::signal::{Signal, kill},
    time::{ClockId, clock_gettime},
    unistd::{Pid, geteuid},
};
use sim_ebpf::{Probes, ProbesConfig, cgroup_id, cgroup2_mount};
use std::{
    env, fs,
    io::{BufRead, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Longest that anything here is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

const ROLE: &str = "SIM_EBPF_TEST_ROLE";
const CGROUP: &str = "SIM_EBPF_TEST_CGROUP";

/// Taken by each test: they all see the same kernel, and some ask for a CPU of their own.
pub(crate) struct Privileged {
    pub(crate) object: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Privileged {
    /// `None`, loudly, if the test can't run; a panic if it must.
    pub(crate) fn enter() -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let object = env::var_os("SIM_EBPF_OBJECT").map(PathBuf::from);
        let reason = match &object {
            _ if !geteuid().is_root() => "not root",
            None => "SIM_EBPF_OBJECT does not name the eBPF object",
            Some(_) => {
                let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
                return object.map(|object| Self { object, _alone });
            }
        };
        assert!(
            env::var_os("SIM_REQUIRE_PRIVILEGED").is_none_or(|value| value != "1"),
            "privileged test can't run: {reason}"
        );
        eprintln!("SKIPPED ({reason})");
        None
    }

    pub(crate) fn config(&self) -> ProbesConfig {
        ProbesConfig::new(&self.object)
    }

    pub(crate) fn load(&self) -> Probes {
        Probes::load(&self.config()).unwrap()
    }
}

/// A cgroup directory of the test's own; its processes are killed and it is removed at the end.
pub(crate) struct Cgroup {
    pub(crate) path: PathBuf,
}

impl Cgroup {
    pub(crate) fn new(name: &str) -> Self {
        Self::below(&cgroup2_mount().unwrap(), name)
    }

    pub(crate) fn below(parent: &Path, name: &str) -> Self {
        let path = parent.join(format!("sim-ebpf-test-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self { path }
    }

    pub(crate) fn id(&self) -> u64 {
        cgroup_id(&self.path).unwrap()
    }

    /// `usage_usec` of the cgroup, in nanoseconds.
    pub(crate) fn cpu_usage_ns(&self) -> u64 {
        let stat = fs::read_to_string(self.path.join("cpu.stat")).unwrap();
        let usage = stat
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "))
            .unwrap();
        usage.trim().parse::<u64>().unwrap() * 1_000
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = fs::remove_dir(&self.path) {
            for pid in fs::read_to_string(self.path.join("cgroup.procs"))
                .unwrap_or_default()
                .lines()
            {
                kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).ok();
            }
            assert!(
                Instant::now() < deadline,
                "{}: {error}",
                self.path.display()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// This test program again, in a cgroup and playing one of the roles of [`play`]. Killed when dropped.
pub(crate) struct Actor {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Actor {
    /// Starts an actor and waits until it is in `cgroup` and about to begin.
    pub(crate) fn start(cgroup: &Cgroup, role: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "actor", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(CGROUP, &cgroup.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        wait_line(&mut output, "ready");
        Self { child, output }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets the actor begin.
    pub(crate) fn go(&mut self) {
        self.child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"go\n")
            .unwrap();
    }

    /// What the actor says after `word`, on the line that has it.
    pub(crate) fn hears(&mut self, word: &str) -> String {
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap() > 0 {
            if let Some((_, rest)) = line.split_once(word) {
                return rest.trim().to_owned();
            }
            line.clear();
        }
        panic!("the actor left before it said {word}");
    }

    /// Puts it into another hierarchy's cgroup as well.
    pub(crate) fn join(&self, cgroup: &Cgroup) {
        fs::write(cgroup.path.join("cgroup.procs"), self.pid().to_string()).unwrap();
    }

    /// Waits until the actor has done its part (it then stays until it is dropped).
    pub(crate) fn done(&mut self) {
        wait_line(&mut self.output, "done");
    }

    /// Stops the actor and waits until none of it runs.
    pub(crate) fn rest(&self) {
        self.signal(Signal::SIGSTOP);
        eventually("the actor at rest", || {
            let mut tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
            tasks
                .all(|task| is_at_rest(&task.unwrap().path()))
                .then_some(())
        });
    }

    /// Tells a waiting actor to leave by itself.
    pub(crate) fn leave(&mut self) {
        drop(self.child.stdin.take());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

/// True if a thread, by its folder in `/proc`, is stopped and has left its CPU. Its state alone says the first a
/// moment before the second, and what it ran until then is counted when it leaves.
fn is_at_rest(task: &Path) -> bool {
    let read = |name| fs::read_to_string(task.join(name)).unwrap();
    let stopped = read("stat").rsplit_once(") ").unwrap().1.starts_with('T');
    // Nowhere as long as it is on a CPU.
    stopped && read("wchan").trim() != "0"
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn wait_line(output: &mut impl BufRead, wanted: &str) {
    let mut line = String::new();
    while output.read_line(&mut line).unwrap() > 0 {
        // The test harness writes on the same line.
        if line.trim_end().ends_with(wanted) {
            return;
        }
        line.clear();
    }
    panic!("the actor left before it was {wanted}");
}

/// What an actor does; returns at once in the test program itself.
pub(crate) fn play() {
    let Ok(role) = env::var(ROLE) else { return };
    let cgroup = PathBuf::from(env::var_os(CGROUP).unwrap());
    // The kernel takes 0 for "me". cgroup1 has the same file.
    fs::write(cgroup.join("cgroup.procs"), "0").unwrap();
    say("ready");
    let (what, argument) = role.split_once(' ').unwrap_or((&role, ""));
    let mut line = String::new();
    match what {
        "idle" => {}
        "threads" => {
            std::io::stdin().read_line(&mut line).unwrap();
            for _ in 0..argument.parse().unwrap() {
                thread::spawn(|| {}).join().unwrap();
            }
        }
        "spin" => {
            std::io::stdin().read_line(&mut line).unwrap();
            compute_forever();
        }
        "spin-on" => {
            pin(argument.parse().unwrap());
            std::io::stdin().read_line(&mut line).unwrap();
            compute_forever();
        }
        "spin-in-thread" => {
            pin(argument.parse().unwrap());
            std::io::stdin().read_line(&mut line).unwrap();
            thread::spawn(|| compute_forever()).join().ok();
        }
        "thread-per-turn" => {
            std::io::stdin().read_line(&mut line).unwrap();
            for _ in 0..argument.parse().unwrap() {
                // It is born on CPU 1, and its parent gets out of its way.
                pin(1);
                let thread = thread::spawn(|| compute(1_000_000));
                pin(0);
                thread.join().unwrap();
            }
        }
        "ping-pong" => {
            std::io::stdin().read_line(&mut line).unwrap();
            ping_pong(argument.parse().unwrap());
        }
        "write-direct" => {
            std::io::stdin().read_line(&mut line).unwrap();
            write_direct(Path::new(argument));
        }
        "write-direct-timed" => {
            std::io::stdin().read_line(&mut line).unwrap();
            let took: Vec<_> = write_direct(Path::new(argument))
                .into_iter()
                .map(|one| one.as_nanos().to_string())
                .collect();
            say(&format!("took {}", took.join(" ")));
        }
        "read-direct" => {
            let (threads, path) = argument.split_once(' ').unwrap();
            std::io::stdin().read_line(&mut line).unwrap();
            let reads = read_direct(Path::new(path), threads.parse().unwrap());
            say(&format!("reads {reads}"));
        }
        "send" => {
            let (port, bytes) = argument.split_once(' ').unwrap();
            let mut stream = TcpStream::connect(("127.0.0.1", port.parse().unwrap())).unwrap();
            std::io::stdin().read_line(&mut line).unwrap();
            stream.write_all(&vec![0; bytes.parse().unwrap()]).unwrap();
            say("done");
            wait_for_the_end();
            return;
        }
        "serve" => {
            serve(Duration::from_millis(argument.parse().unwrap()));
            return;
        }
        "dial" => {
            std::io::stdin().read_line(&mut line).unwrap();
            let (port, count) = argument.split_once(' ').unwrap();
            let port: u16 = port.parse().unwrap();
            for _ in 0..count.parse().unwrap() {
                let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
                // Closed with an answer unread, the kernel sends a reset.
                stream.peek(&mut [0]).unwrap();
            }
            let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = nobody.local_addr().unwrap();
            drop(nobody);
            assert!(TcpStream::connect(address).is_err());
        }
        "hold" => {
            std::io::stdin().read_line(&mut line).unwrap();
            let mut held = Vec::new();
            for _ in 0..argument.parse().unwrap() {
                held.push(std::hint::black_box(vec![1_u8; 1 << 20]));
            }
        }
        "write-file" => {
            std::io::stdin().read_line(&mut line).unwrap();
            let (path, mib) = argument.split_once(' ').unwrap();
            let mut file = fs::File::create(path).unwrap();
            for _ in 0..mib.parse().unwrap() {
                file.write_all(&vec![1; 1 << 20]).unwrap();
            }
        }
        other => panic!("no role {other}"),
    }
    say("done");
    wait_for_the_end();
}

/// A small HTTP/1.1 server that thinks for `think` over each request, until the test closes our input:
/// says its port, answers 200, or 503 where the path says so.
fn serve(think: Duration) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    say(&format!("port {}", listener.local_addr().unwrap().port()));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut head = String::new();
                while reader.read_line(&mut head).unwrap_or(0) > 0 {
                    if !head.ends_with("\r\n\r\n") {
                        continue;
                    }
                    thread::sleep(think);
                    let status = if head.contains("/bad") {
                        "503 Busy"
                    } else {
                        "200 OK"
                    };
                    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok");
                    (&stream).write_all(answer.as_bytes()).unwrap();
                    head.clear();
                }
            });
        }
    });
    wait_for_the_end();
}

fn compute_forever() -> ! {
    loop {
        compute(u32::MAX);
    }
}

fn compute(rounds: u32) {
    // Not `spin_loop`: a hypervisor may take a virtual CPU away that does nothing but pause.
    let mut x = 1_u64;
    for _ in 0..rounds {
        x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

/// Size and number of the blocks that a `write-direct` actor writes.
pub(crate) const BLOCK_BYTES: usize = 64 << 10;
pub(crate) const BLOCKS: usize = 128;

/// Writes the blocks; how long each took.
fn write_direct(path: &Path) -> Vec<Duration> {
    #[repr(C, align(4096))]
    struct Aligned([u8; BLOCK_BYTES]);
    let block = Box::new(Aligned([7; BLOCK_BYTES]));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap();
    let write = |_| {
        let start = Instant::now();
        file.write_all(&block.0).unwrap();
        start.elapsed()
    };
    (0..BLOCKS).map(write).collect()
}

/// Reads blocks of 4 KiB here and there, for two seconds, in so many threads; how many.
fn read_direct(path: &Path, threads: u64) -> u64 {
    #[repr(C, align(4096))]
    struct Aligned([u8; 4096]);
    let blocks = (BLOCKS * BLOCK_BYTES / 4096) as u64;
    let read = |seed: u64| {
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .unwrap();
        let mut block = Box::new(Aligned([0; 4096]));
        let end = Instant::now() + Duration::from_secs(2);
        let (mut at, mut count) = (seed, 0);
        while Instant::now() < end {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            file.read_exact_at(&mut block.0, (at >> 33) % blocks * 4096)
                .unwrap();
            count += 1;
        }
        count
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|t| scope.spawn(move || read(t))).collect();
        running.into_iter().map(|one| one.join().unwrap()).sum()
    })
}

/// Two threads on one CPU that wake each other: two switches per round.
fn ping_pong(rounds: u32) {
    let (mut there_out, mut there_in) = std::io::pipe().map(|(r, w)| (w, r)).unwrap();
    let (mut back_out, mut back_in) = std::io::pipe().map(|(r, w)| (w, r)).unwrap();
    let echo = thread::spawn(move || {
        pin(0);
        let mut byte = [0];
        for _ in 0..rounds {
            there_in.read_exact(&mut byte).unwrap();
            back_out.write_all(&byte).unwrap();
        }
    });
    pin(0);
    let mut byte = [0];
    for _ in 0..rounds {
        there_out.write_all(&byte).unwrap();
        back_in.read_exact(&mut byte).unwrap();
    }
    echo.join().unwrap();
}

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &set).unwrap();
}

fn say(word: &str) {
    println!("{word}");
    std::io::stdout().flush().unwrap();
}

/// Until the test closes our input, or kills us.
fn wait_for_the_end() {
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

pub(crate) fn monotonic_ns() -> u64 {
    Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap())
        .as_nanos()
        .try_into()
        .unwrap()
}

/// Polls until `condition` gives something.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Asserts that two figures from independent sources agree.
pub(crate) fn assert_close(what: &str, ours: u64, theirs: u64, tolerance: f64) {
    let off = (ours as f64 - theirs as f64) / theirs as f64;
    eprintln!("{what}: {ours} against {theirs}, {:+.3} %", off * 100.0);
    assert!(
        off.abs() <= tolerance,
        "{what}: {ours} against {theirs}, {:+.3} %",
        off * 100.0
    );
}
