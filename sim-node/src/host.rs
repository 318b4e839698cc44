//! Every cgroup of this machine, side by side: what `sim sense` shows. No instance is needed, and
//! nothing is changed.

use crate::cgroup::{Detail, Hierarchy, StatFiles, Usage};
use crate::listeners::{Listeners, Queue};
use crate::signals::{self, Means, Signal};
use sim_ebpf::{Counters, Group, GroupState, Probes, ProbesConfig};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where kernel threads and whatever nobody put elsewhere run.
const ROOT: &str = "/";

/// Senses all cgroups.
#[derive(Debug)]
pub struct Host {
    hierarchy: Hierarchy,
    root: PathBuf,
    probes: Option<Probes>,
    notes: Vec<String>,
    known: BTreeMap<u64, Known>,
    waits: HashMap<(u64, u64), u64>,
    listeners: Option<Listeners>,
    at: Instant,
    untracked: usize,
}

#[derive(Debug)]
struct Known {
    name: String,
    tracked: bool,
    kernel: Option<Counters>,
    files: Usage,
}

/// What one cgroup did between two looks.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Path below the cgroup mount.
    pub cgroup: String,
    /// Time between the looks.
    pub window: Duration,
    /// What the probes counted of the cgroup's own tasks and sockets; none without probes.
    pub kernel: Option<Counters>,
    /// What its files say, nested cgroups included.
    pub files: Usage,
    /// Whether it has files of memory.
    pub has_memory: bool,
    /// Its listening sockets in this network namespace; none where it has none here, or where the kernel
    /// doesn't list them.
    pub accept_queue: Option<Queue>,
    /// Who held the CPU while its tasks waited, longest first.
    pub neighbours: Vec<(String, Duration)>,
}

impl Host {
    /// Loads the probes and takes a first look. `object` is the probes' object file. Where probes are
    /// refused, [`notes`](Self::notes) says so, and files are read.
    ///
    /// # Errors
    /// No cgroup version 2 mount.
    pub fn open(object: Option<&Path>) -> io::Result<Self> {
        let hierarchy = Hierarchy::detect()?;
        let root = hierarchy.unified_dir("").ok_or_else(|| {
            io::Error::other("no cgroup2 is mounted, by which cgroups are told apart")
        })?;
        let mut notes = Vec::new();
        let probes = match object {
            None => {
                notes
                    .push("no probes: no object file is installed (`cargo xtask ebpf`)".to_owned());
                None
            }
            Some(object) => {
                let mut config = ProbesConfig::new(object);
                config.cgroup_root = Some(root.clone());
                Probes::load(&config)
                    .inspect_err(|error| notes.push(format!("no probes: {error}")))
                    .ok()
            }
        };
        for status in probes.iter().flat_map(Probes::status) {
            if status.state != GroupState::Active {
                notes.push(status.to_string());
            }
        }
        let mut host = Self {
            hierarchy,
            root,
            probes,
            notes,
            known: BTreeMap::new(),
            waits: HashMap::new(),
            listeners: None,
            at: Instant::now(),
            untracked: 0,
        };
        match Listeners::open() {
            Ok(listeners) => host.listeners = Some(listeners),
            Err(error) => host.notes.push(format!(
                "connections that wait to be accepted are not seen: {error}"
            )),
        }
        host.look();
        Ok(host)
    }

    /// What is not seen, and what is read instead; one line each.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Where each signal comes from, and how good it is.
    #[must_use]
    pub fn signals(&self) -> Vec<Signal> {
        signals::all(Means {
            active: &|group| self.is_active(group),
            cgroups: true,
            listeners: self.listeners.is_some(),
            node: false,
            memory: self.hierarchy.has_memory(),
            pressure: self.hierarchy.has_pressure(),
        })
    }

    /// Whether cgroups have files of pressure.
    #[must_use]
    pub fn has_pressure(&self) -> bool {
        self.hierarchy.has_pressure()
    }

    /// Whether a group of probes runs.
    #[must_use]
    pub fn is_active(&self, group: Group) -> bool {
        self.probes.as_ref().is_some_and(|p| p.is_active(group))
    }

    /// Cgroups that the probes have no room for.
    #[must_use]
    pub fn untracked(&self) -> usize {
        self.untracked
    }

    /// What every cgroup did since the last look.
    pub fn look(&mut self) -> Vec<Reading> {
        let window = self.at.elapsed();
        self.at = Instant::now();
        self.follow();
        if let Some(probes) = &mut self.probes {
            probes.settle();
            probes.flush_log();
        }
        let mut neighbours = self.neighbours();
        let queues = match &mut self.listeners {
            Some(listeners) => listeners.look().ok(),
            None => None,
        };
        let mut by_path = StatFiles::opened_anew();
        let mut readings = Vec::with_capacity(self.known.len());
        for (&id, known) in &mut self.known {
            let kernel = self.probes.as_ref().and_then(|probes| probes.read(id).ok());
            let name = known.name.trim_start_matches('/');
            let files = Usage::of(&self.hierarchy, name, Detail::Whole, &mut by_path)
                .unwrap_or(known.files);
            let spent = match (&kernel, &known.kernel) {
                (Some(now), Some(before)) => Some(now.since(before)),
                _ => None,
            };
            readings.push(Reading {
                cgroup: known.name.clone(),
                window,
                kernel: spent,
                files: files.since(&known.files),
                has_memory: self.hierarchy.has_memory_of(name),
                accept_queue: queues.as_ref().and_then(|queues| queues.get(&id).copied()),
                neighbours: neighbours.remove(&id).unwrap_or_default(),
            });
            known.kernel = kernel;
            known.files = files;
        }
        readings
    }

    /// Tracks what is new and forgets what is gone.
    fn follow(&mut self) {
        let mut found = BTreeMap::new();
        walk(&self.root, ROOT, &mut found);
        let gone: Vec<u64> = self
            .known
            .keys()
            .filter(|id| !found.contains_key(id))
            .copied()
            .collect();
        for id in gone {
            self.known.remove(&id);
            if let Some(probes) = &mut self.probes {
                probes.untrack(id);
            }
        }
        self.untracked = 0;
        for (id, name) in found {
            let known = self.known.entry(id).or_insert_with(|| Known {
                name,
                tracked: false,
                kernel: None,
                files: Usage::default(),
            });
            if let Some(probes) = &mut self.probes
                && !known.tracked
            {
                known.tracked = probes.track(id).is_ok();
                self.untracked += usize::from(!known.tracked);
            }
        }
    }

    fn neighbours(&mut self) -> HashMap<u64, Vec<(String, Duration)>> {
        let mut named: HashMap<u64, Vec<(String, Duration)>> = HashMap::new();
        let Some(probes) = &mut self.probes else {
            return named;
        };
        let mut waits = HashMap::new();
        for wait in probes.neighbours() {
            let Some(running) = self.known.get(&wait.running) else {
                probes.forget_neighbour(wait.waiting, wait.running);
                continue;
            };
            let pair = (wait.waiting, wait.running);
            let before = self.waits.get(&pair).copied().unwrap_or(0);
            waits.insert(pair, wait.wait_ns);
            let since = wait.wait_ns.saturating_sub(before);
            if since > 0 {
                let entry = (running.name.clone(), Duration::from_nanos(since));
                named.entry(wait.waiting).or_default().push(entry);
            }
        }
        self.waits = waits;
        for list in named.values_mut() {
            list.sort_by_key(|entry| std::cmp::Reverse(entry.1));
        }
        named
    }
}

fn walk(dir: &Path, name: &str, found: &mut BTreeMap<u64, String>) {
    // One that is removed meanwhile is simply not there.
    let (Ok(metadata), Ok(entries)) = (fs::metadata(dir), fs::read_dir(dir)) else {
        return;
    };
    found.insert(metadata.ino(), name.to_owned());
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let child = format!(
                "{}/{}",
                name.trim_end_matches('/'),
                entry.file_name().to_string_lossy()
            );
            walk(&entry.path(), &child, found);
        }
    }
}
