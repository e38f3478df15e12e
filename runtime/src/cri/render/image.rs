//! Images in answers.

use std::time::{SystemTime, UNIX_EPOCH};

use berth_image::{FsUsage, Image};
use berth_proto::cri;

/// The image in lists and status.
pub(in crate::cri) fn image(image: &Image, pinned: bool) -> cri::Image {
    let config = image.config.config().as_ref();
    let user = config.and_then(|config| config.user().as_deref()).unwrap_or_default();
    let (uid, username) = self::user(user);
    cri::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid,
        username,
        spec: None,
        pinned,
    }
}

/// `USER` of an image is `user[:group]`, by number or name. Without one both stay unset.
fn user(text: &str) -> (Option<cri::Int64Value>, String) {
    let user = text.split(':').next().unwrap_or_default();
    match user.parse::<u32>() {
        Ok(uid) => (Some(cri::Int64Value { value: uid.into() }), String::new()),
        Err(_) => (None, user.to_owned()),
    }
}

/// What the store takes of its filesystem, as of now.
pub(in crate::cri) fn fs_usage(usage: &FsUsage) -> cri::FilesystemUsage {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    cri::FilesystemUsage {
        timestamp: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        fs_id: Some(cri::FilesystemIdentifier {
            mountpoint: usage.mountpoint.display().to_string(),
        }),
        used_bytes: Some(cri::UInt64Value { value: usage.bytes }),
        inodes_used: Some(cri::UInt64Value { value: usage.inodes }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_or_names() {
        let number = |value| (Some(cri::Int64Value { value }), String::new());
        let name = |name: &str| (None, name.to_owned());
        let cases = [
            ("", name("")),
            ("0", number(0)),
            ("1000:1000", number(1000)),
            ("nobody", name("nobody")),
            ("www-data:www-data", name("www-data")),
            ("-1", name("-1")),
        ];
        for (text, expected) in cases {
            assert_eq!(user(text), expected, "{text:?}");
        }
    }
}
