//! Each model in every interleaving, see the package.

use sim_proxy_models::{ejection, hand_over, in_flight};

/// How often a thread that could go on is made to wait. `LOOM_MAX_PREEMPTIONS` asks for more.
const PREEMPTIONS: usize = 3;

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(PREEMPTIONS);
    builder.check(model);
}

#[test]
fn an_instance_that_is_reported_empty_gets_no_request_more() {
    check(|| hand_over::reported_empty_is_empty(1));
}

#[test]
fn nor_does_it_with_two_workers() {
    check(|| hand_over::reported_empty_is_empty(2));
}

#[test]
fn a_request_after_a_table_goes_by_it() {
    check(hand_over::a_table_is_obeyed_once_it_is_applied);
}

#[test]
fn of_two_tables_the_newer_one_stands() {
    check(hand_over::the_newer_table_stands);
}

#[test]
fn an_instance_that_comes_back_while_it_is_forgotten_is_known() {
    check(hand_over::whoever_is_in_the_table_is_known);
}

#[test]
fn a_report_with_none_in_flight_has_all_that_ended() {
    check(|| in_flight::a_report_of_none_has_all_ends(1));
    check(|| in_flight::a_report_of_none_has_all_ends(2));
}

#[test]
fn two_failures_at_once_leave_one_instance_in() {
    check(ejection::the_last_one_stays);
}

#[test]
fn a_burst_of_failures_ejects_once() {
    check(ejection::a_burst_of_failures_is_one_ejection);
}

#[test]
fn of_two_requests_after_an_ejection_one_probes() {
    check(ejection::one_request_probes);
}

#[test]
fn a_late_failure_and_a_good_probe_end_in_one_state() {
    check(ejection::a_good_probe_and_a_late_failure_agree);
}
