//! Who follows how much, so that one token does not take the room of all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::TokenId;

/// Streams of logs and jobs that one token may follow at once.
pub const MAX_FOLLOWED: usize = 128;

/// How many streams each token follows. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Followers {
    counts: Arc<Mutex<HashMap<TokenId, usize>>>,
}

/// A stream that is followed until this is dropped.
#[derive(Debug)]
pub struct Following {
    followers: Followers,
    token: TokenId,
}

impl Followers {
    fn counts(&self) -> MutexGuard<'_, HashMap<TokenId, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One stream more; `None` when the token follows [`MAX_FOLLOWED`].
    pub(crate) fn follow(&self, token: TokenId) -> Option<Following> {
        let mut counts = self.counts();
        let count = counts.entry(token).or_default();
        if *count >= MAX_FOLLOWED {
            return None;
        }
        *count += 1;
        Some(Following { followers: self.clone(), token })
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut counts = self.followers.counts();
        if let Some(count) = counts.get_mut(&self.token) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_takes_its_own_room_only() {
        let followers = Followers::default();
        let (one, other) = (TokenId(1), TokenId(2));
        let mut held: Vec<_> = (0..MAX_FOLLOWED).map(|_| followers.follow(one)).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(followers.follow(one).is_none());
        assert!(followers.follow(other).is_some());
        held.pop();
        assert!(followers.follow(one).is_some(), "there is room again");
        held.clear();
        assert!(followers.counts().is_empty());
    }
}
