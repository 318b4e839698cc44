//! What goes wrong behind the proxy, one after the other: no workload is ever without an instance that serves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;
use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;

use crate::tally::{Kill, Tally};
use crate::world::{WORKLOADS, World};

/// Between two faults, at least and at most.
const PAUSE: (f64, f64) = (1.0, 4.0);
/// How long one lasts.
const LASTS: (f64, f64) = (0.5, 4.0);
/// The world is whole for the last so long.
const WHOLE: Duration = Duration::from_secs(5);

/// Faults for `span`.
pub(crate) async fn run(
    world: &mut World,
    span: Duration,
    seed: u64,
    tally: &Arc<Tally>,
) -> Result<()> {
    let end = Instant::now() + span.saturating_sub(WHOLE);
    let mut dice = Pcg64::seed_from_u64(seed);
    loop {
        wait(&mut dice, PAUSE).await;
        if Instant::now() >= end {
            return Ok(());
        }
        let workload = dice.random_range(0..WORKLOADS.len());
        match dice.random_range(0..10) {
            0..3 => killed(world, workload, &mut dice, tally).await?,
            3..5 => stopped(world, workload, &mut dice, tally).await?,
            5..7 => weighted(world, workload, &mut dice, tally)?,
            7..9 => exchanged(world, workload, &mut dice, tally).await?,
            _ => {
                tally.fault("control plane gone");
                let span = dice.random_range(LASTS.0..LASTS.1);
                world.without_control(Duration::from_secs_f64(span)).await?;
            }
        }
    }
}

async fn wait(dice: &mut Pcg64, (least, most): (f64, f64)) {
    tokio::time::sleep(Duration::from_secs_f64(dice.random_range(least..most))).await;
}

/// One is killed, and started again: as the same at once, or as another that the table then names.
async fn killed(
    world: &mut World,
    workload: usize,
    dice: &mut Pcg64,
    tally: &Arc<Tally>,
) -> Result<()> {
    let at = dice.random_range(0..world.instances[workload].len());
    tally.fault("killed");
    let dead = &mut world.instances[workload][at];
    tally.kills(Kill {
        workload,
        instance: dead.address,
        left: None,
    });
    dead.kill()?;
    let before = (dead.id, dead.address);
    wait(dice, LASTS).await;
    let is_same: bool = dice.random();
    let mut instance = world.spawn(is_same.then_some(before)).await?;
    instance.weight_bp = world.instances[workload][at].weight_bp;
    world.instances[workload][at] = instance;
    world.publish(workload)
}

async fn stopped(
    world: &mut World,
    workload: usize,
    dice: &mut Pcg64,
    tally: &Arc<Tally>,
) -> Result<()> {
    let at = dice.random_range(0..world.instances[workload].len());
    tally.fault("stopped");
    world.instances[workload][at].signal(Signal::SIGSTOP)?;
    wait(dice, LASTS).await;
    world.instances[workload][at].signal(Signal::SIGCONT)
}

fn weighted(
    world: &mut World,
    workload: usize,
    dice: &mut Pcg64,
    tally: &Arc<Tally>,
) -> Result<()> {
    tally.fault("weights changed");
    let mut left = 10_000;
    let instances = &mut world.instances[workload];
    let (last, others) = instances.split_last_mut().expect("there are two at least");
    for instance in others {
        instance.weight_bp = dice.random_range(0..=left);
        left -= instance.weight_bp;
    }
    last.weight_bp = left;
    world.publish(workload)
}

/// Another takes the place of one, which drains and ends.
async fn exchanged(
    world: &mut World,
    workload: usize,
    dice: &mut Pcg64,
    tally: &Arc<Tally>,
) -> Result<()> {
    tally.fault("exchanged");
    let instance = world.spawn(None).await?;
    world.instances[workload].push(instance);
    world.even(workload);
    world.publish(workload)?;
    wait(dice, LASTS).await;
    let at = dice.random_range(0..world.instances[workload].len() - 1);
    let gone = world.instances[workload].remove(at);
    world.even(workload);
    world.publish(workload)?;
    let left = Some(Instant::now());
    // Longer than anybody who isn't slow on purpose takes for an answer.
    wait(dice, (2.0, 3.0)).await;
    tally.kills(Kill {
        workload,
        instance: gone.address,
        left,
    });
    drop(gone);
    Ok(())
}
