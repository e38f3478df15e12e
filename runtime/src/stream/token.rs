//! One-use tokens: what an RPC hands out is asked for once over HTTP, and soon.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::time::Instant;

/// How long a token is good.
const LIFE: Duration = Duration::from_secs(60);
/// Tokens that may be waiting.
const MAX: usize = 1000;
/// Bytes of the kernel's randomness in one.
const RANDOM: usize = 32;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// As many wait as may.
    #[error("{MAX} streams are asked for and not yet opened")]
    Full,
    /// The kernel gives no random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] rustix::io::Errno),
}

/// What was promised for each token.
#[derive(Debug)]
pub(super) struct Tokens<T>(Mutex<HashMap<String, (Instant, T)>>);

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Tokens<T> {
    /// Keeps `promise` for whoever brings the token.
    pub(super) fn give(&self, promise: T) -> Result<String, Error> {
        let mut random = [0_u8; RANDOM];
        let mut filled = 0;
        while let Some(rest) = random.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
        }
        let token = URL_SAFE_NO_PAD.encode(random);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX {
            let now = Instant::now();
            all.retain(|_, (until, _)| *until > now);
        }
        if all.len() >= MAX {
            return Err(Error::Full);
        }
        all.insert(token.clone(), (Instant::now() + LIFE, promise));
        Ok(token)
    }

    /// What was promised; it is gone then. `None`: never given, used, or too old.
    pub(super) fn take(&self, token: &str) -> Option<T> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, promise) = all.remove(token)?;
        (until > Instant::now()).then_some(promise)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_once_and_for_a_minute() {
        let tokens = Tokens::default();
        let (first, second) = (tokens.give(1).unwrap(), tokens.give(2).unwrap());
        assert_ne!(first, second);
        assert_eq!(first.len(), 43);
        assert_eq!((tokens.take(&first), tokens.take(&first)), (Some(1), None));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(tokens.take(&second), None);
        assert_eq!(tokens.take("never given"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_wait() {
        let tokens = Tokens::default();
        let given: Vec<_> = (0..MAX).map(|n| tokens.give(n).unwrap()).collect();
        assert!(matches!(tokens.give(0), Err(Error::Full)));
        assert_eq!(tokens.take(&given[5]), Some(5));
        tokens.give(0).unwrap();
        assert!(matches!(tokens.give(0), Err(Error::Full)));
        tokio::time::advance(Duration::from_secs(61)).await;
        tokens.give(0).unwrap();
    }
}
