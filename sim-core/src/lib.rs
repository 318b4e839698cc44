//! The brain of SIM, pure: events in, commands out, `now` an argument.
//!
//! This crate does no I/O, reads no clock, spawns nothing and draws no unseeded randomness, so
//! the live control plane, the backtest and the simulation run the same code. It builds without
//! `std` so that the compiler itself forbids the rest.
//!
//! Start at [`machine::Core::step`], which folds one [`event::Event`] into the state and answers
//! with [`command::Command`]s and [`journal::Record`]s; [`decide`] is the pure decision inside it.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod address;
pub mod capacity;
pub mod command;
pub mod decide;
pub mod event;
pub mod forecast;
pub mod histogram;
pub mod invariants;
pub mod journal;
pub mod lead_time;
pub mod machine;
pub mod name;
pub mod parity;
pub mod placement;
pub mod policy;
pub mod server;
pub mod table;
pub mod time;
pub mod workload;
