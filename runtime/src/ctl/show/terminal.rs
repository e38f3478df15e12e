//! The terminal behind standard error.

/// Columns and rows; those of old where the terminal does not say.
pub(super) fn size() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(std::io::stderr());
    let or = |value: u16, default| if value == 0 { default } else { usize::from(value) };
    size.map_or((80, 24), |size| (or(size.ws_col, 80), or(size.ws_row, 24)))
}
