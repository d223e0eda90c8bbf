//! Who follows and waits for how much, so that one token does not take the room of all.

use model::TokenId;
use runtime::Share;

/// Streams of logs and jobs that one token may follow at once.
pub const MAX_FOLLOWED: usize = 128;
/// Calls of one token that may wait for a change at once; a runner has one for each of its tasks.
pub const MAX_WAITING_CALLS: usize = 512;

/// A stream that is followed until this is dropped.
pub type Following = Share<TokenId>;
/// A call that waits until this is dropped.
pub type Waiting = Share<TokenId>;
