//! See ARCHITECTURE.md.

pub mod resident;
