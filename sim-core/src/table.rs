//! The weight table: the share of new requests that each instance of a workload gets.

use crate::address::Address;
use crate::name::{InstanceId, WorkloadName};
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

/// All of the traffic, in basis points.
pub const FULL_BP: u16 = 10_000;

/// Fencing stamp of a table. A receiver keeps the highest it has seen and refuses lower ones.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Version {
    /// Rises each time a control plane takes the lead (once per start with the embedded store).
    pub epoch: u64,
    /// Rises with each table of one epoch.
    pub generation: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.generation)
    }
}

/// One instance's line of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Whose share.
    pub instance: InstanceId,
    /// Where it listens.
    pub address: Address,
    /// Share of new requests, 0..=10 000.
    pub weight_bp: u16,
    /// Proven ready. An instance that is not ready has weight 0 and is no failover target.
    pub ready: bool,
}

/// Which instance gets copies of users' requests, whose answers are thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// Who gets them. Ready, and not the only one that is.
    pub instance: InstanceId,
    /// Share of the requests that are copied, 1..=10 000.
    pub share_bp: u16,
}

/// Why a set of shares is no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// Weights must sum to 10 000 (or the table has no instance at all).
    Sum(u32),
    /// An instance stands in it twice.
    Duplicate(InstanceId),
    /// A weight above 0 on an instance that is not ready.
    NotReady(InstanceId),
    /// Who can't be the mirror, and why not.
    Mirror(InstanceId, &'static str),
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sum(sum) => write!(f, "weights sum to {sum}, not to 10000"),
            Self::Duplicate(id) => write!(f, "instance {id} stands in the table twice"),
            Self::NotReady(id) => write!(f, "instance {id} is not ready but has a weight"),
            Self::Mirror(id, why) => write!(f, "instance {id} can't be the mirror: {why}"),
        }
    }
}

impl core::error::Error for TableError {}

/// A whole, validated table; never a delta.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightTable {
    workload: WorkloadName,
    version: Version,
    shares: Vec<Share>,
    mirror: Option<Mirror>,
}

impl WeightTable {
    /// Validates `shares`. An empty list is a table too: "nothing serves this workload now".
    ///
    /// # Errors
    /// [`TableError`] where the weights don't sum to 10 000, an instance is repeated, or one that
    /// is not ready has a weight.
    pub fn new(
        workload: WorkloadName,
        version: Version,
        shares: Vec<Share>,
    ) -> Result<Self, TableError> {
        let sum: u32 = shares.iter().map(|s| u32::from(s.weight_bp)).sum();
        if sum != u32::from(FULL_BP) && !(sum == 0 && shares.iter().all(|s| !s.ready)) {
            return Err(TableError::Sum(sum));
        }
        for (at, share) in shares.iter().enumerate() {
            if shares[..at].iter().any(|s| s.instance == share.instance) {
                return Err(TableError::Duplicate(share.instance));
            }
            if share.weight_bp > 0 && !share.ready {
                return Err(TableError::NotReady(share.instance));
            }
        }
        Ok(Self {
            workload,
            version,
            shares,
            mirror: None,
        })
    }

    /// The same table, and requests are copied to `mirror`.
    ///
    /// # Errors
    /// [`TableError::Mirror`] where it isn't a ready instance of the table beside another ready
    /// one, or the share is none.
    pub fn with_mirror(self, mirror: Mirror) -> Result<Self, TableError> {
        let refused = |why| Err(TableError::Mirror(mirror.instance, why));
        if !(1..=FULL_BP).contains(&mirror.share_bp) {
            return refused("its share is not 1 to 10000");
        }
        let is_mirror = |share: &&Share| share.instance == mirror.instance;
        match self.shares.iter().find(is_mirror) {
            None => return refused("it doesn't stand in the table"),
            Some(share) if !share.ready => return refused("it is not ready"),
            Some(_) => {}
        }
        if self.shares.iter().filter(|share| share.ready).count() < 2 {
            return refused("no other one is ready");
        }
        Ok(Self {
            mirror: Some(mirror),
            ..self
        })
    }

    /// Whose table.
    #[must_use]
    pub fn workload(&self) -> &WorkloadName {
        &self.workload
    }

    /// Its fencing stamp.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Its lines.
    #[must_use]
    pub fn shares(&self) -> &[Share] {
        &self.shares
    }

    /// Which instance gets copies, if one does.
    #[must_use]
    pub fn mirror(&self) -> Option<Mirror> {
        self.mirror
    }

    /// Weight of `instance`; 0 where it isn't listed.
    #[must_use]
    pub fn weight_bp(&self, instance: InstanceId) -> u16 {
        self.shares
            .iter()
            .find(|s| s.instance == instance)
            .map_or(0, |s| s.weight_bp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn share(id: u64, weight_bp: u16, ready: bool) -> Share {
        let address = ([127, 0, 0, 1], 1000 + id as u16).into();
        Share {
            instance: InstanceId(id),
            address,
            weight_bp,
            ready,
        }
    }

    fn table(shares: Vec<Share>) -> Result<WeightTable, TableError> {
        let name = WorkloadName::new("web").expect("valid");
        WeightTable::new(
            name,
            Version {
                epoch: 1,
                generation: 1,
            },
            shares,
        )
    }

    #[test]
    fn a_table_is_whole_or_refused() {
        assert!(table(vec![share(1, 9_500, true), share(2, 500, true)]).is_ok());
        assert!(table(vec![]).is_ok());
        assert!(table(vec![share(1, 0, false)]).is_ok());
        assert_eq!(
            table(vec![share(1, 9_000, true)]),
            Err(TableError::Sum(9_000))
        );
        assert_eq!(
            table(vec![share(1, 0, true)]),
            Err(TableError::Sum(0)),
            "a ready instance must not be left without traffic by a table of zeros"
        );
        assert_eq!(
            table(vec![share(1, 9_500, true), share(2, 500, false)]),
            Err(TableError::NotReady(InstanceId(2)))
        );
        assert_eq!(
            table(vec![share(1, 5_000, true), share(1, 5_000, true)]),
            Err(TableError::Duplicate(InstanceId(1)))
        );
    }

    #[test]
    fn a_mirror_is_ready_and_stands_beside_another_that_is() {
        let pair = || vec![share(1, 10_000, true), share(2, 0, true)];
        let with = |shares, id, share_bp| {
            let instance = InstanceId(id);
            table(shares)
                .expect("a table")
                .with_mirror(Mirror { instance, share_bp })
        };
        assert!(with(pair(), 2, 10_000).is_ok());
        let unready = vec![share(1, 10_000, true), share(2, 0, false)];
        for (shares, id, share_bp) in [
            (pair(), 2, 0),
            (pair(), 2, 10_001),
            (pair(), 3, 100),
            (unready.clone(), 2, 100),
            (unready, 1, 100),
        ] {
            let refused = with(shares, id, share_bp);
            assert!(
                matches!(refused, Err(TableError::Mirror(of, _)) if of == InstanceId(id)),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn a_later_epoch_wins_over_any_generation() {
        let old = Version {
            epoch: 1,
            generation: 900,
        };
        assert!(
            Version {
                epoch: 2,
                generation: 1
            } > old
        );
    }
}
