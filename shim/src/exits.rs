//! Exit records on disk: written to a temporary name, then renamed, so that a reader finds a
//! whole one or none.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;

use berth_proto::exit::ExitRecord;
use berth_proto::paths::PodPaths;

/// Writes the record of one container. It must be readable after a crash of the shim, not after
/// one of the machine, which ends the containers too: nothing is synced.
pub(crate) fn write(paths: &PodPaths, record: &ExitRecord) -> io::Result<()> {
    let directory = paths.exits();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let name = format!("{}.json", record.container_id);
    let temporary = directory.join(format!(".{name}.tmp"));
    let written = serde_json::to_vec(record)
        .map_err(io::Error::other)
        .and_then(|bytes| fs::write(&temporary, bytes))
        .and_then(|()| fs::rename(&temporary, directory.join(name)));
    if written.is_err() {
        // Half a file takes room that the next try may need. Absent is fine.
        let _absent = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_written_whole_and_replaced() {
        let directory =
            std::env::temp_dir().join(format!("berth-test-exits-{}", std::process::id()));
        let paths = PodPaths::at(&directory);
        let mut record = ExitRecord {
            version: berth_proto::exit::VERSION,
            container_id: "c1".into(),
            exit_code: 137,
            signal: Some(9),
            exited_at: 5,
            oom_killed: true,
            log_bytes_lost: 7,
        };
        for code in [137, 3] {
            record.exit_code = code;
            write(&paths, &record).unwrap();
            let bytes = fs::read(paths.exits().join("c1.json")).unwrap();
            assert_eq!(serde_json::from_slice::<ExitRecord>(&bytes).unwrap(), record);
            assert_eq!(fs::read_dir(paths.exits()).unwrap().count(), 1);
        }
        fs::remove_dir_all(directory).unwrap();
    }
}
