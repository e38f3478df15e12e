//! What can be done to a running container's log and terminal.

use super::Phase;
use crate::shim::Shim;
use crate::ttrpc::Status;

impl Shim {
    /// Opens a container's log anew at the same path: the old file was renamed.
    pub(crate) fn reopen_log(&mut self, id: &str) -> Result<(), Status> {
        let (_, container) = self.container_mut(id)?;
        if container.phase != Phase::Running {
            let state = container.phase.name();
            return Err(Status::precondition(format!("reopen log: container {id:?} is {state}")));
        }
        let Some(log) = container.log.as_mut() else {
            return Err(Status::precondition(format!("reopen log: container {id:?} has no log")));
        };
        log.reopen().map_err(|error| {
            Status::internal(format!("reopen log {}: {error}", log.path().display()))
        })
    }

    /// Closes a container's standard input for good.
    pub(crate) fn close_stdin(&mut self, id: &str) -> Result<(), Status> {
        let (_, container) = self.container_mut(id)?;
        container.stdin = None;
        Ok(())
    }

    /// Sets the size of a container's terminal.
    pub(crate) fn resize_terminal(&self, id: &str, columns: u16, rows: u16) -> Result<(), Status> {
        let container = self.container(id)?;
        let pump = container.first_pump().and_then(|number| self.pumps.get(&number));
        let Some(pump) = pump.filter(|_| container.streams.terminal) else {
            return Err(Status::precondition(format!("resize: container {id:?} has no terminal")));
        };
        let size =
            rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(pump, size)
            .map_err(|error| Status::internal(format!("resize the terminal: {error}")))
    }
}
