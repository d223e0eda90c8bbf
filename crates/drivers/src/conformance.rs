//! What every driver must do, as named cases that run against any of them.
//!
//! The cases start programs every system has (`sh`, `printf`, `sleep`, `cat`, ...) and need fresh
//! containers only; they may run at the same time. Those about networks and escapes start `busybox`
//! too, and `python3` where a container has it; on the machine they need `ip`.

mod bench;
mod containers;
mod escapes;
mod files;
mod layout;
mod limits;
mod network;
mod outlive;
mod processes;
mod sessions;
mod shares;
mod streams;
mod tars;

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::driver::Driver;
use crate::error::{DriverError, Result};
use crate::spec::Handle;

pub(crate) use bench::Bench;

/// What is tested.
pub trait Subject: Send + Sync {
    /// A driver as a restarted agent would open it: knowing nothing, on the same containers.
    fn open(&self) -> Result<Arc<dyn Driver>>;

    /// Puts the programs the cases start into a fresh container, where it does not have them.
    fn furnish<'a>(
        &'a self,
        _driver: &'a dyn Driver,
        _handle: &'a Handle,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Whether the root of a container is that of the machine, with most rights taken away.
    fn shares_users(&self) -> bool {
        false
    }
}

/// Why a case failed.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    pub(crate) const fn new(reason: String) -> Self {
        Self(reason)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        Self(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// The result of one case.
pub type Verdict = std::result::Result<(), Failure>;

/// One thing every driver must do.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name, with the group it belongs to.
    pub name: &'static str,
    run: fn(Bench) -> BoxFuture<'static, Verdict>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

impl Case {
    /// Runs the case.
    pub async fn run(&self, subject: Arc<dyn Subject>) -> Verdict {
        let bench = Bench::new(subject, self.name)?;
        let verdict = (self.run)(bench.clone()).await;
        bench.clean_up().await?;
        verdict
    }
}

/// Fails the case unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Failure::new(format!($($message)+)));
        }
    };
}
pub(crate) use ensure;

macro_rules! cases {
    ($($group:ident :: $name:ident),+ $(,)?) => {
        vec![$(Case {
            name: concat!(stringify!($group), "::", stringify!($name)),
            run: |bench| Box::pin($group::$name(bench)),
        }),+]
    };
}

/// All cases.
pub fn all() -> Vec<Case> {
    let mut cases = basic();
    cases.extend(able());
    cases
}

/// What every driver must do.
fn basic() -> Vec<Case> {
    cases![
        containers::create_list_and_remove_are_idempotent,
        containers::properties_come_back,
        containers::names_have_limits,
        containers::remove_leaves_nothing,
        containers::remove_reaches_every_depth,
        containers::remove_kills_what_runs,
        containers::remove_beats_a_forker,
        containers::containers_have_their_own_directories,
        containers::stats_count_memory_processes_and_disk,
        processes::exit_codes_and_signals_are_told_apart,
        processes::arguments_are_literal,
        processes::the_environment_is_clean,
        processes::the_working_directory_is_made,
        processes::nothing_else_is_inherited,
        processes::a_start_that_fails_says_why,
        processes::a_process_id_is_used_once,
        processes::many_start_at_once,
        processes::open_files_are_limited,
        processes::a_signal_reaches_the_group,
        processes::a_signal_after_the_end_is_an_error,
        processes::stop_lets_a_process_end_itself,
        processes::stop_kills_what_ignores_it,
        processes::stop_one_leaves_the_others,
        processes::a_daemon_is_killed,
        processes::a_background_child_does_not_delay_the_exit,
        streams::stdout_and_stderr_are_captured,
        streams::output_is_followed_live,
        streams::large_output_is_whole,
        streams::unread_output_is_bounded,
        streams::reading_resumes_at_any_offset,
        files::a_tree_goes_in_and_out,
        files::a_copied_program_runs,
        files::a_single_file_comes_out,
        files::escapes_are_refused,
        files::set_id_bits_are_dropped,
        files::limits_hold,
        files::broken_archives_are_refused,
        outlive::a_running_process_is_adopted,
        outlive::an_unwatched_exit_is_known,
        outlive::a_killed_supervisor_is_not_a_success,
        outlive::a_killed_supervisor_takes_its_processes_along,
        limits::without_a_limit_memory_is_free,
    ]
}

/// What a driver must do that says it can.
fn able() -> Vec<Case> {
    cases![
        layout::layers_are_shared_and_never_modified,
        layout::layers_remove_what_is_below,
        layout::a_read_only_root_is_one,
        layout::mounts_are_what_they_say,
        layout::processes_run_as_who_was_asked_for,
        layout::files_copied_in_belong_to_the_user,
        limits::memory_runs_out_and_is_reported,
        limits::memory_files_count_as_memory,
        limits::a_fork_bomb_is_contained,
        limits::processor_time_is_limited,
        limits::a_full_disk_is_only_its_own,
        limits::a_file_has_a_largest_size,
        limits::temporary_files_have_their_own_limit,
        network::private_addresses_need_a_rule,
        network::the_machine_needs_a_rule,
        network::connections_of_one_leave_room_for_others,
        network::metadata_services_are_out_of_reach,
        network::containers_do_not_reach_each_other,
        network::others_do_not_reach_containers,
        network::a_published_port_leads_to_its_container,
        network::sources_cannot_be_forged,
        sessions::a_session_has_three_streams,
        sessions::a_session_has_a_terminal,
        sessions::a_terminal_interrupts,
        sessions::a_dropped_session_is_killed,
        sessions::a_killed_keeper_takes_its_session_along,
        sessions::a_session_that_fails_says_why,
        escapes::attempts_from_a_shell_fail,
        escapes::dangerous_calls_are_refused,
        escapes::powers_over_the_machine_are_dropped,
        escapes::set_id_programs_give_nothing,
        escapes::directories_lead_nowhere_else,
        shares::the_kernel_has_enough_for_all,
    ]
}
