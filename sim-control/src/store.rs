//! The embedded store: journal, core snapshots with the inputs since, history, and the epoch.
//!
//! Records are JSON, for tools; snapshots and inputs are postcard, which keeps every bit of a
//! number, infinities too.
//!
//! What a decision stands on is on disk before its commands go out. Replaying the inputs on the
//! snapshot they follow gives the same commands, bit for bit.

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use sim_core::event::Event;
use sim_core::journal::Record;
use sim_core::machine::Core;
use sim_core::time::Time;
use std::path::{Path, PathBuf};

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const JOURNAL: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("journal");
const SNAPSHOTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshots");
const INPUTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("inputs");
/// Series name and time in microseconds to value.
const HISTORY: TableDefinition<'_, (&str, u64), f64> = TableDefinition::new("history");

/// Snapshots kept, with the inputs since the older one.
const SNAPSHOTS_KEPT: usize = 2;
/// Journal records kept.
const JOURNAL_KEPT: u64 = 100_000;

/// What an earlier run left.
pub(crate) enum Restored {
    /// Its core, and the inputs since.
    Core(Box<Core>, Vec<Input>),
    /// It was there, but of another version or damaged: why.
    Unreadable(String),
    /// There was none.
    Nothing,
}

/// Why the store can't serve.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its file can't be opened or made.
    #[error("{path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: Box<redb::Error>,
    },
    /// A transaction failed.
    #[error("store: {0}")]
    Transaction(Box<redb::Error>),
    /// A record can't be written as JSON.
    #[error("store: {0}")]
    Record(#[from] serde_json::Error),
    /// A snapshot or an input can't be written.
    #[error("store: {0}")]
    Encode(#[from] postcard::Error),
}

fn failed(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Transaction(Box::new(error.into()))
}

/// One input of the core.
pub(crate) type Input = (Time, Event);

/// What one commit holds.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) inputs: Vec<Input>,
    pub(crate) records: Vec<Record>,
    /// Series name and value, all at one time.
    pub(crate) samples: Vec<(String, f64)>,
    pub(crate) at: Time,
}

/// The store, open.
#[derive(Debug)]
pub struct Store {
    database: Database,
    next_input: u64,
    next_record: u64,
}

impl Store {
    /// Opens the store in `dir`, making it where there is none.
    ///
    /// # Errors
    /// [`StoreError::Open`] where another process holds it or the file is none of ours.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("control.redb");
        let open = |source: redb::Error| StoreError::Open {
            path: path.clone(),
            source: Box::new(source),
        };
        let database = Database::create(&path).map_err(|e| open(e.into()))?;
        let write = database.begin_write().map_err(failed)?;
        let (next_input, next_record) = {
            write.open_table(META).map_err(failed)?;
            write.open_table(SNAPSHOTS).map_err(failed)?;
            write.open_table(HISTORY).map_err(failed)?;
            let inputs = write.open_table(INPUTS).map_err(failed)?;
            let journal = write.open_table(JOURNAL).map_err(failed)?;
            let after = |last: Option<(redb::AccessGuard<'_, u64>, _)>| {
                last.map_or(1, |(key, _): (_, redb::AccessGuard<'_, &[u8]>)| {
                    key.value() + 1
                })
            };
            (
                after(inputs.last().map_err(failed)?),
                after(journal.last().map_err(failed)?),
            )
        };
        write.commit().map_err(failed)?;
        Ok(Self {
            database,
            next_input,
            next_record,
        })
    }

    /// Takes the lead: raises the epoch and gives it.
    ///
    /// # Errors
    /// Where the transaction fails.
    pub fn take_lead(&mut self) -> Result<u64, StoreError> {
        let write = self.database.begin_write().map_err(failed)?;
        let epoch = {
            let mut meta = write.open_table(META).map_err(failed)?;
            let epoch = meta.get("epoch").map_err(failed)?.map_or(0, |v| v.value()) + 1;
            meta.insert("epoch", epoch).map_err(failed)?;
            epoch
        };
        write.commit().map_err(failed)?;
        Ok(epoch)
    }

    /// The newest snapshot that can be read, and the inputs since.
    ///
    /// # Errors
    /// Where the transaction fails; a snapshot of another version is passed over with a warning.
    pub(crate) fn restore(&self) -> Result<Restored, StoreError> {
        let mut unreadable = None;
        let read = self.database.begin_read().map_err(failed)?;
        let snapshots = read.open_table(SNAPSHOTS).map_err(failed)?;
        for entry in snapshots.iter().map_err(failed)?.rev() {
            let (after, bytes) = entry.map_err(failed)?;
            let core: Core = match postcard::from_bytes(bytes.value()) {
                Ok(core) => core,
                Err(error) => {
                    tracing::warn!("snapshot {} can't be read: {error}", after.value());
                    unreadable = Some(error.to_string());
                    continue;
                }
            };
            let table = read.open_table(INPUTS).map_err(failed)?;
            let mut inputs = Vec::new();
            for entry in table.range(after.value()..).map_err(failed)? {
                let (sequence, bytes) = entry.map_err(failed)?;
                match postcard::from_bytes(bytes.value()) {
                    Ok(input) => inputs.push(input),
                    Err(error) => {
                        tracing::warn!("input {} can't be read: {error}", sequence.value());
                        break;
                    }
                }
            }
            return Ok(Restored::Core(Box::new(core), inputs));
        }
        Ok(unreadable.map_or(Restored::Nothing, Restored::Unreadable))
    }

    /// Keeps `core` as it is after all inputs written so far, and drops what no snapshot needs.
    ///
    /// # Errors
    /// Where the transaction fails.
    pub(crate) fn snapshot(&mut self, core: &Core) -> Result<(), StoreError> {
        let bytes = postcard::to_stdvec(core)?;
        let write = self.database.begin_write().map_err(failed)?;
        {
            let mut snapshots = write.open_table(SNAPSHOTS).map_err(failed)?;
            snapshots
                .insert(self.next_input, bytes.as_slice())
                .map_err(failed)?;
            let keys: Vec<u64> = snapshots
                .iter()
                .map_err(failed)?
                .map(|e| e.map(|(k, _)| k.value()))
                .collect::<Result<_, _>>()
                .map_err(failed)?;
            let surplus = keys.len().saturating_sub(SNAPSHOTS_KEPT);
            for key in &keys[..surplus] {
                snapshots.remove(key).map_err(failed)?;
            }
            let oldest = keys.get(surplus).copied().unwrap_or(self.next_input);
            let mut inputs = write.open_table(INPUTS).map_err(failed)?;
            inputs.retain(|key, _| key >= oldest).map_err(failed)?;
            let mut journal = write.open_table(JOURNAL).map_err(failed)?;
            let first = self.next_record.saturating_sub(JOURNAL_KEPT);
            journal.retain_in(..first, |_, _| false).map_err(failed)?;
        }
        write.commit().map_err(failed)
    }

    /// Writes a batch, durably; gives the sequence number of its first record.
    ///
    /// # Errors
    /// Where the transaction fails: nothing of the batch is kept then.
    pub(crate) fn commit(&mut self, batch: &Batch) -> Result<u64, StoreError> {
        let first = self.next_record;
        let (mut next_input, mut next_record) = (self.next_input, self.next_record);
        let write = self.database.begin_write().map_err(failed)?;
        {
            let mut inputs = write.open_table(INPUTS).map_err(failed)?;
            for input in &batch.inputs {
                let bytes = postcard::to_stdvec(input)?;
                inputs
                    .insert(next_input, bytes.as_slice())
                    .map_err(failed)?;
                next_input += 1;
            }
            let mut journal = write.open_table(JOURNAL).map_err(failed)?;
            for record in &batch.records {
                let bytes = serde_json::to_vec(record)?;
                journal
                    .insert(next_record, bytes.as_slice())
                    .map_err(failed)?;
                next_record += 1;
            }
            let mut history = write.open_table(HISTORY).map_err(failed)?;
            for (series, value) in &batch.samples {
                history
                    .insert((series.as_str(), batch.at.0), value)
                    .map_err(failed)?;
            }
        }
        write.commit().map_err(failed)?;
        (self.next_input, self.next_record) = (next_input, next_record);
        Ok(first)
    }

    /// Journal records from sequence number `from` on, as JSON.
    ///
    /// # Errors
    /// Where the transaction fails.
    pub(crate) fn journal(
        &self,
        from: u64,
        limit: usize,
    ) -> Result<Vec<(u64, String)>, StoreError> {
        let read = self.database.begin_read().map_err(failed)?;
        let journal = read.open_table(JOURNAL).map_err(failed)?;
        let mut records = Vec::new();
        for entry in journal.range(from..).map_err(failed)?.take(limit) {
            let (sequence, bytes) = entry.map_err(failed)?;
            records.push((
                sequence.value(),
                String::from_utf8_lossy(bytes.value()).into_owned(),
            ));
        }
        Ok(records)
    }

    /// The newest `limit` samples of a series, oldest first.
    ///
    /// # Errors
    /// Where the transaction fails.
    pub fn history(&self, series: &str, limit: usize) -> Result<Vec<(Time, f64)>, StoreError> {
        let read = self.database.begin_read().map_err(failed)?;
        let history = read.open_table(HISTORY).map_err(failed)?;
        let mut samples = Vec::new();
        let range = history
            .range((series, 0)..=(series, u64::MAX))
            .map_err(failed)?;
        for entry in range.rev().take(limit) {
            let (key, value) = entry.map_err(failed)?;
            samples.push((Time(key.value().1), value.value()));
        }
        samples.reverse();
        Ok(samples)
    }

    /// Drops history older than `before`.
    ///
    /// # Errors
    /// Where the transaction fails.
    pub(crate) fn forget_history(&mut self, before: Time) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(failed)?;
        {
            let mut history = write.open_table(HISTORY).map_err(failed)?;
            history
                .retain(|(_, at), _| at >= before.0)
                .map_err(failed)?;
        }
        write.commit().map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sim_core::journal::Kind;
    use sim_core::name::WorkloadName;
    use sim_core::policy::Policy;

    fn record(reason: &str) -> Record {
        Record {
            at: Time(1),
            workload: WorkloadName::new("web").expect("valid"),
            kind: Kind::Steady,
            instance: None,
            shadow_bp: 0,
            reason: reason.into(),
            report: None,
        }
    }

    #[test]
    fn the_epoch_rises_over_restarts_and_records_keep_their_numbers() {
        let dir = tempfile::tempdir().expect("dir");
        for (epoch, first) in [(1, 1), (2, 2), (3, 3)] {
            let mut store = Store::open(dir.path()).expect("open");
            assert_eq!(store.take_lead().expect("lead"), epoch);
            let batch = Batch {
                records: vec![record("x")],
                ..Batch::default()
            };
            assert_eq!(store.commit(&batch).expect("commit"), first);
        }
        let store = Store::open(dir.path()).expect("open");
        let numbers: Vec<u64> = store
            .journal(2, 10)
            .expect("read")
            .into_iter()
            .map(|r| r.0)
            .collect();
        assert_eq!(numbers, [2, 3]);
    }

    #[test]
    fn a_snapshot_comes_back_with_the_inputs_since_and_no_others() {
        let dir = tempfile::tempdir().expect("dir");
        let mut store = Store::open(dir.path()).expect("open");
        let input = |at| Batch {
            inputs: vec![(Time(at), Event::Tick)],
            ..Batch::default()
        };
        let core = Core::new(Policy::default(), 7, Vec::new(), Vec::new());
        store.commit(&input(1)).expect("commit");
        store.snapshot(&core).expect("snapshot");
        store.commit(&input(2)).expect("commit");
        store.commit(&input(3)).expect("commit");
        drop(store);
        let store = Store::open(dir.path()).expect("open");
        let Restored::Core(restored, inputs) = store.restore().expect("read") else {
            panic!("a snapshot");
        };
        let restored = *restored;
        assert_eq!(restored, core);
        assert_eq!(inputs, [(Time(2), Event::Tick), (Time(3), Event::Tick)]);
    }

    #[test]
    fn a_snapshot_of_another_version_is_told_and_not_taken_for_none() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(dir.path()).expect("open");
        assert!(matches!(store.restore(), Ok(Restored::Nothing)));
        let write = store.database.begin_write().expect("write");
        {
            let mut snapshots = write.open_table(SNAPSHOTS).expect("table");
            snapshots.insert(1, [9_u8; 40].as_slice()).expect("insert");
        }
        write.commit().expect("commit");
        let Ok(Restored::Unreadable(why)) = store.restore() else {
            panic!("read");
        };
        assert!(!why.is_empty());
    }

    #[test]
    fn history_is_read_back_in_order_and_forgotten_by_age() {
        let dir = tempfile::tempdir().expect("dir");
        let mut store = Store::open(dir.path()).expect("open");
        for at in 1..=5_u64 {
            let samples = vec![("web/demand".to_owned(), at as f64), ("x".to_owned(), 0.0)];
            let batch = Batch {
                samples,
                at: Time(at),
                ..Batch::default()
            };
            store.commit(&batch).expect("commit");
        }
        store.forget_history(Time(3)).expect("forget");
        let read = store.history("web/demand", 2).expect("read");
        assert_eq!(read, [(Time(4), 4.0), (Time(5), 5.0)]);
        assert_eq!(store.history("web/demand", 99).expect("read").len(), 3);
    }

    #[test]
    fn a_store_that_another_process_holds_is_refused_with_its_path() {
        let dir = tempfile::tempdir().expect("dir");
        let first = Store::open(dir.path()).expect("open");
        let error = Store::open(dir.path()).expect_err("held");
        assert!(error.to_string().contains("control.redb"), "{error}");
        drop(first);
    }
}
