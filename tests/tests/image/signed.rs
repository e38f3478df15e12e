//! Images under a policy, as kubelet sees it.

use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_tests::image::{Blob, Built};
use berth_tests::node::fresh_dir;
use berth_tests::prelude::*;
use rcgen::{KeyPair, SigningKey as _};
use serde_json::json;

use crate::{find, list, own_image, push, spec, try_pull};

/// A key pair, the public key in a file.
struct Key {
    pair: KeyPair,
    dir: PathBuf,
}

impl Drop for Key {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.dir);
    }
}

impl Key {
    fn new() -> Result<Self> {
        let key = Self { pair: KeyPair::generate()?, dir: fresh_dir("key")? };
        std::fs::write(key.file(), key.pair.public_key_pem())?;
        Ok(key)
    }

    fn file(&self) -> PathBuf {
        self.dir.join("cosign.pub")
    }

    /// Signs as `cosign sign --new-bundle-format=false` does.
    fn sign(&self, node: &Node, repository: &str, image: &Built) -> Result<()> {
        let payload = json!({"critical": {
            "identity": {"docker-reference": "any"},
            "image": {"docker-manifest-digest": image.manifest.digest},
            "type": "cosign container image signature",
        }, "optional": null});
        let payload = Blob::new(serde_json::to_vec(&payload)?);
        let signature = BASE64_STANDARD.encode(self.pair.sign(&payload.bytes)?);
        let config = Blob::new(b"{}".to_vec());
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config.digest, "size": config.bytes.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
                "digest": payload.digest, "size": payload.bytes.len(),
                "annotations": {"dev.cosignproject.cosign/signature": signature},
            }],
        });
        let manifest = Blob::new(serde_json::to_vec(&manifest)?);
        let blobs = vec![config.clone(), payload];
        let built = Built { config, manifest, media_type, blobs, children: Vec::new() };
        let tag = format!("{}.sig", image.manifest.digest.replace(':', "-"));
        node.registry().push(repository, &tag, &built)
    }
}

/// A node with a rule for two repositories.
async fn node(key: &Key) -> Result<Node> {
    let config = format!(
        "[[image.policy.rule]]\nprefix = \"registry.test/prod\"\naction = \"require\"\n\
         keys = [\"{}\"]\n\
         [[image.policy.rule]]\nprefix = \"registry.test/denied\"\naction = \"deny\"\n",
        key.file().display()
    );
    Node::builder().config(&config).start().await
}

fn refusal(status: &tonic::Status, rule: &str) {
    // kubelet sees a message's beginning in errors of this code only.
    assert_eq!(status.code(), tonic::Code::Unknown, "{status:?}");
    let message = status.message();
    assert!(message.starts_with("SignatureValidationFailed: "), "{message}");
    assert!(message.contains(&format!("the rule for {rule:?}")), "{message}");
}

#[tokio::test]
async fn a_refused_pull_says_its_rule_in_words_that_kubelet_knows() -> Result<()> {
    let key = Key::new()?;
    let node = node(&key).await?;
    let image = own_image("signed")?.build();
    let denied = push(&node, "denied/app", "1", &image)?;
    refusal(&try_pull(&node, &denied).await.unwrap_err(), "registry.test/denied");
    let required = push(&node, "prod/app", "1", &image)?;
    refusal(&try_pull(&node, &required).await.unwrap_err(), "registry.test/prod");
    Key::new()?.sign(&node, "prod/app", &image)?;
    let error = try_pull(&node, &required).await.unwrap_err();
    refusal(&error, "registry.test/prod");
    assert!(error.message().contains("made with none of the rule's keys"), "{error:?}");
    assert!(list(&node).await?.is_empty());

    key.sign(&node, "prod/app", &image)?;
    let id = try_pull(&node, &required).await?;
    let pod = node.pod("signed").await?;
    let mut config = shell("main", "cat /mark");
    config.image = Some(ImageSpec { user_specified_image: required, ..spec(&id) });
    assert_eq!(node.output(&pod, config).await?, "signed");
    node.finish().await
}

#[tokio::test]
async fn what_came_by_another_name_is_held_to_the_rule_of_the_pod() -> Result<()> {
    let key = Key::new()?;
    let node = node(&key).await?;
    let image = own_image("other way")?.build();
    let free = push(&node, "free/app", "1", &image)?;
    let id = try_pull(&node, &free).await?;
    let pod = node.pod("held").await?;
    let named = |name: &str| {
        let mut config = shell("main", "cat /mark");
        config.image = Some(ImageSpec { user_specified_image: name.to_owned(), ..spec(&id) });
        config
    };
    let prod = push(&node, "prod/app", "1", &image)?;
    for (name, rule) in [
        (prod.as_str(), "registry.test/prod"),
        ("registry.test/denied/x:1", "registry.test/denied"),
    ] {
        let request = node.create_request(&pod, named(name));
        refusal(&node.cri().create_container(request).await.unwrap_err(), rule);
        let volume = Mount {
            container_path: "/v".into(),
            readonly: true,
            image: Some(ImageSpec { user_specified_image: name.to_owned(), ..spec(&id) }),
            ..Default::default()
        };
        let config = ContainerConfig { mounts: vec![volume], ..named(&free) };
        let request = node.create_request(&pod, config);
        refusal(&node.cri().create_container(request).await.unwrap_err(), rule);
    }
    assert_eq!(node.output(&pod, named(&free)).await?, "other way");
    // A pull by the name verifies what is there already.
    key.sign(&node, "prod/app", &image)?;
    assert_eq!(try_pull(&node, &prod).await?, id);
    let mut again = named(&prod);
    again.metadata = Some(ContainerMetadata { name: "again".into(), attempt: 0 });
    again.log_path = "again.log".into();
    assert_eq!(node.output(&pod, again).await?, "other way");
    assert!(find(&node, &prod).await?.is_some());
    node.finish().await
}
