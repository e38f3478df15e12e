//! The bytes of containers: from their pipes and terminals to logs and to answers.

pub(crate) mod lines;
pub(crate) mod log_file;
pub(crate) mod pump;
pub(crate) mod stamp;
pub(crate) mod tap;
