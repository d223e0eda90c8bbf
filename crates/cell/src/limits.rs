//! Every number that bounds something.

use std::time::Duration;

/// How many containers are made at once.
pub const MAX_CREATES: usize = 8;
/// How many blobs are downloaded at once.
pub const MAX_DOWNLOADS: usize = 5;
/// How many URLs are downloaded at once.
pub const MAX_FETCHES: usize = 5;
/// How many uploads to the blob store are under way at once.
pub const MAX_UPLOADS: usize = 5;
/// How many uploads to URLs are under way at once.
pub(crate) const MAX_SENDS: usize = 5;
/// How many of each of these one project has under way at once, with the projects below it.
pub const PROJECT_TURNS: usize = 2;
/// How many bytes an archive may have before it is compressed and uploaded.
pub(crate) const MAX_ARCHIVE_BYTES: u64 = model::MAX_TRANSFER_BYTES;
/// How many bytes of a transfer must come in each period, and how long that is.
pub(crate) const MIN_PACE_BYTES: u64 = 256 << 10;
/// See [`MIN_PACE_BYTES`]. Longer than a URL may send nothing before it is asked again.
pub(crate) const PACE_PERIOD: Duration = Duration::from_mins(2);
/// The most entries of a zip archive that is unpacked, and the most bytes of its table: both are held
/// in memory.
pub(crate) const MAX_ZIP_ENTRIES: u64 = 200_000;
/// See [`MAX_ZIP_ENTRIES`].
pub(crate) const MAX_ZIP_TABLE: u64 = 16 << 20;
/// How many files named by their digests one upload sends at once.
pub const MAX_NAMED_UPLOADS: usize = 4;
/// How many bytes of unpacked image layers are kept for later.
pub const CACHED_LAYER_BYTES: u64 = 10 << 30;
/// How many bytes of caches of builds are kept for later.
pub const CACHED_BUILD_BYTES: u64 = 10 << 30;
/// How many bytes one of them may have, also while it is in use.
pub const MAX_CACHE_BYTES: u64 = 5 << 30;
/// How many bytes on their way into and out of containers a cell expects to have on disk.
pub const SPOOL_BYTES: u64 = 4 << 30;
/// How many bytes of its disk a cell leaves free.
pub const RESERVE_BYTES: u64 = 2 << 30;
/// None of these is more than this part of the disk, and one cache in use no more than the second.
pub(crate) const DISK_PARTS: (u64, u64) = (10, 4);
/// How often the cell looks for free disk while caches are in use, and how large those are.
pub(crate) const SPACE_LOOKS: (Duration, Duration) =
    (Duration::from_millis(50), Duration::from_secs(2));
/// A look takes at most one part of this many of the time.
pub(crate) const LOOK_PART: u32 = 20;
/// How long a task's process has between TERM and KILL.
pub const TASK_GRACE: Duration = Duration::from_secs(10);
/// How long after the connection broke a task may still begin. The server's lease is 15 s; a dead
/// connection is noticed within two keep-alive periods.
pub const UNREACHABLE_LIMIT: Duration = Duration::from_secs(7);
/// How long the server may be out of reach before running tasks are ended. Its lease is shorter, but
/// a server that was restarted begins all leases afresh, and so long jobs wait for it; whoever did
/// not come back by then has failed the tasks, or will.
pub const TASK_LEASE: Duration = Duration::from_mins(1);

/// Time between heartbeats.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(5);
/// Time between keep-alive pings of an idle connection, and how long an answer may take.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// How long connecting may take, up to the server's welcome.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The shortest and the longest pause before connecting again.
pub(crate) const RECONNECT: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(2));
/// Messages that wait to be sent to the server.
pub(crate) const MAX_UP: usize = 256;
/// Ended work whose end the agent has not noticed yet.
pub(crate) const MAX_ENDED: usize = 1024;
/// Lines of one message.
pub(crate) const MAX_BATCH_LINES: usize = 256;
/// Bytes of one message of lines, give or take one line.
pub(crate) const MAX_BATCH_BYTES: usize = 256 << 10;
/// How long lines wait for more.
pub(crate) const BATCH_DELAY: Duration = Duration::from_millis(20);
/// Messages of lines that the server has not acknowledged, for each container.
pub(crate) const MAX_UNKEPT: usize = 8;
/// Pieces of output that wait to become messages, for each container.
pub(crate) const MAX_PIECES: usize = 16;
/// The longest line; longer ones are cut, and say so.
pub const MAX_LINE: usize = 64 << 10;
/// Bytes of lines that a container may write each second, unless its spec says otherwise.
pub const LOG_BYTES: u64 = 1 << 20;
/// How many seconds' worth it may write at once.
pub const LOG_BURST_SECONDS: u64 = 4;
/// How long a container may have written while no agent was there to read it, for what is let
/// through of that.
pub(crate) const UNREAD_CREDIT: Duration = Duration::from_mins(1);
/// Messages of lines that wait to be sent to the server; nothing else waits behind them.
pub(crate) const MAX_LOG_UP: usize = 16;
/// How long a connected server may acknowledge nothing while the last lines of a container wait.
pub(crate) const FLUSH_LIMIT: Duration = Duration::from_secs(10);
/// How often a certificate is asked for before an instance cannot start, and how long each may take.
pub(crate) const IDENTITY_ATTEMPTS: u32 = 3;
/// See [`IDENTITY_ATTEMPTS`].
pub(crate) const IDENTITY_LIMIT: Duration = Duration::from_secs(5);
/// When less of a certificate's time is left, another one is asked for. The server gives 24 h.
pub(crate) const RENEW_LEFT: Duration = Duration::from_hours(12);
/// How often that is looked at.
pub(crate) const RENEW_LOOK: Duration = Duration::from_mins(1);
/// How often the places where logs continue are written down.
pub(crate) const SAVE_EVERY: Duration = Duration::from_secs(1);
/// The largest image manifest or configuration.
pub(crate) const MAX_IMAGE_JSON: usize = 4 << 20;
/// Images whose manifest and configuration are remembered.
pub(crate) const MAX_KNOWN_IMAGES: usize = 64;
/// How often a download that broke is tried.
pub(crate) const FETCH_ATTEMPTS: u32 = 5;
/// Most characters of a reason.
pub(crate) const MAX_REASON: usize = 10_000;
/// How many containers run on a machine unless told otherwise.
pub(crate) const DEFAULT_CONTAINERS: u32 = 256;
/// The port of an instance that has a network of its own.
pub(crate) const OWN_NETWORK_PORT: u16 = 8080;
/// The first and the longest pause between two checks of an instance that is not healthy yet.
pub(crate) const CHECK_PAUSES: (Duration, Duration) =
    (Duration::from_millis(5), Duration::from_millis(250));
/// The longest pause of a check that runs a command: its shortest interval.
pub(crate) const COMMAND_CHECK_PAUSE: Duration =
    Duration::from_millis(model::MIN_COMMAND_INTERVAL_MS);
/// How long a cell that has no room waits before it gives work back.
pub(crate) const REJECT_PAUSE: Duration = Duration::from_secs(1);
/// How long a cell that leaves serves on while the server moves what it has: as long as the server
/// lets its tasks run.
pub(crate) const DEPARTURE_LIMIT: Duration = Duration::from_mins(10);
/// How long containers have to end when the cell leaves for good.
pub(crate) const LEAVE_LIMIT: Duration = Duration::from_mins(1);
/// The first and the longest pause before a container is removed again that could not be.
pub(crate) const REMOVE_PAUSES: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(30));
/// How long an agent that starts waits for what an earlier one left to be removed.
pub(crate) const LEFTOVER_LIMIT: Duration = Duration::from_secs(10);
/// How long a port that was given back belongs to nobody, so that no router takes another instance
/// for the one that had it.
pub(crate) const PORT_QUARANTINE: Duration = Duration::from_mins(1);
/// How long it may send nothing in the middle of it.
pub(crate) const IDLE_LIMIT: Duration = Duration::from_mins(1);
/// How often the cell looks whether its drivers work.
pub(crate) const DRIVER_LOOK: Duration = Duration::from_secs(10);
/// How many sessions a cell has at once.
pub const MAX_SESSIONS: usize = 64;
/// Bytes on their way to one session.
pub const SESSION_WINDOW: u32 = 256 << 10;
/// How long the output of a session's command that ended may pause before that counts as its end.
pub(crate) const SESSION_LAST_WORDS: Duration = Duration::from_secs(5);
