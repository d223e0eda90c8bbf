//! Worlds without planted bugs are clean, worlds with one are not, and a seed repeats exactly.

use std::process::Command;

use sim::{Options, run};

#[test]
#[cfg_attr(feature = "planted", ignore = "the process may be built with a bug")]
fn two_hundred_worlds_are_clean() {
    for seed in 0..200 {
        assert_eq!(run(seed, Options::default()).failure, None, "seed {seed}");
    }
}

#[test]
fn a_seed_repeats_exactly() {
    let mut hashes = Vec::new();
    for seed in 0..10 {
        let once = run(seed, Options::default());
        assert_eq!(once, run(seed, Options::default()), "seed {seed}");
        assert!(!hashes.contains(&once.hash), "seed {seed} is a world of its own");
        hashes.push(once.hash);
    }
}

#[test]
fn fewer_steps_make_a_shorter_world() {
    let short = run(1, Options { steps: 200, ..Options::default() });
    assert_eq!(short.failure, None);
    assert!(short.steps < run(1, Options::default()).steps);
}

fn sim(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sim"))
        .args(arguments)
        .output()
        .expect("the simulator runs");
    (output.status.code(), String::from_utf8(output.stdout).expect("it prints text"))
}

#[test]
fn a_clean_run_ends_with_a_summary() {
    let (code, text) = sim(&["--seeds", "5", "--start", "10"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("seeds=5 failures=0 steps="), "{text}");
}

#[cfg(not(feature = "planted"))]
#[test]
fn without_the_feature_nothing_can_be_planted() {
    let (code, text) = sim(&["--planted", "M1"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("--features planted"), "{text}");
}

#[cfg(feature = "planted")]
mod planted {
    use super::sim;

    fn is_found(name: &str) {
        let (code, text) = sim(&["--seeds", "400", "--planted", name]);
        assert_eq!(code, Some(1), "{name} is not found: {text}");
        assert!(text.contains("does not hold"), "{text}");
        assert!(
            text.contains(&format!(
                "replay: cargo run --release -p sim --features planted -- --planted {name}"
            )),
            "{text}"
        );
    }

    #[test]
    fn m1_stale_epochs_are_accepted() {
        is_found("M1");
    }

    #[test]
    fn m2_a_sign_of_life_of_an_old_epoch_counts() {
        is_found("M2");
    }

    #[test]
    fn m3_anybody_writes_a_log() {
        is_found("M3");
    }

    #[test]
    fn m4_an_acknowledgement_is_confirmed_before_the_commit() {
        is_found("M4");
    }

    #[test]
    fn m5_a_nack_is_dropped() {
        is_found("M5");
    }

    #[test]
    fn m6_an_offer_that_ran_out_keeps_its_epoch() {
        is_found("M6");
    }

    #[test]
    fn m7_leases_go_by_the_machines_clock() {
        is_found("M7");
    }

    #[test]
    fn m8_a_lost_job_runs_again() {
        is_found("M8");
    }

    #[test]
    fn m9_a_retry_is_scheduled_twice() {
        is_found("M9");
    }

    #[test]
    fn m10_an_idempotency_key_is_not_unique() {
        is_found("M10");
    }

    #[test]
    fn m11_auctioneers_know_nothing_of_each_other() {
        is_found("M11");
    }

    #[test]
    fn m12_convergence_does_not_wait_for_cells_to_come_back() {
        is_found("M12");
    }

    #[test]
    fn m13_an_instance_ends_before_its_route_is_withdrawn() {
        is_found("M13");
    }

    #[test]
    fn m14_an_evacuated_instance_ends_before_another_serves() {
        is_found("M14");
    }

    #[test]
    fn m15_a_message_is_not_in_the_transaction_of_the_end() {
        is_found("M15");
    }

    #[test]
    fn m16_a_build_goes_before_its_deployment() {
        is_found("M16");
    }

    #[test]
    fn m17_a_follower_misses_a_wakeup() {
        is_found("M17");
    }

    #[test]
    fn m18_a_cancellation_is_lost_before_the_acknowledgement() {
        is_found("M18");
    }

    #[test]
    fn m19_a_restart_forgets_waiting_jobs() {
        is_found("M19");
    }

    #[test]
    fn m20_the_last_commit_is_not_on_the_disk() {
        is_found("M20");
    }

    #[test]
    fn an_unknown_bug_is_refused() {
        let (code, text) = sim(&["--planted", "M0"]);
        assert_eq!(code, Some(2));
        assert!(text.contains("there is no bug M0"), "{text}");
    }
}
