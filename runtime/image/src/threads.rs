//! Where the threads run that unpack layers.

use std::fmt;
use std::sync::Arc;
use std::thread::Builder;

use crate::unpack::Error;

/// What a thread that unpacks a layer does first, such as moving itself into a cgroup. Such a
/// thread ends with its layer, so that nothing has to be taken back, and those that it starts
/// begin where it is.
#[derive(Clone, Default)]
pub struct ThreadSetup(Option<Arc<dyn Fn() + Send + Sync>>);

impl fmt::Debug for ThreadSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "ThreadSetup" } else { "none" })
    }
}

impl ThreadSetup {
    /// Each thread begins with this.
    pub fn new(setup: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(setup)))
    }

    /// Runs the work on a thread of its own that was set up; on the caller's, if there is nothing
    /// to set up.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let Some(setup) = &self.0 else { return Ok(work()) };
        std::thread::scope(|scope| {
            let work = move || {
                setup();
                work()
            };
            let thread = Builder::new().name("unpack".to_owned()).spawn_scoped(scope, work);
            let thread = thread.map_err(|e| Error::Thread(e.to_string()))?;
            thread.join().map_err(|_| Error::Thread("unpacking panicked".to_owned()))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread::{ThreadId, current};

    use super::*;

    #[test]
    fn work_runs_on_a_thread_of_its_own_after_the_setup() {
        assert_eq!(ThreadSetup::default().run(|| current().id()).unwrap(), current().id());
        let seen = Arc::new(Mutex::new(Vec::<ThreadId>::new()));
        let note = seen.clone();
        let setup = ThreadSetup::new(move || note.lock().unwrap().push(current().id()));
        let (first, second) = (|| current().id(), || current().id());
        let ran = [setup.run(first).unwrap(), setup.run(second).unwrap()];
        assert_eq!(*seen.lock().unwrap(), ran);
        assert!(ran[0] != ran[1] && !ran.contains(&current().id()));
        let panicked = setup.run(|| panic!("as asked"));
        assert!(panicked.unwrap_err().to_string().contains("panicked"));
    }
}
