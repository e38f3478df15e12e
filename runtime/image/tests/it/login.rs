//! Logging in: a real registry with passwords, and token servers of our own.

use std::path::Path;
use std::sync::{Arc, Mutex};

use berth_image::{Credentials, ErrorKind, ImageStore, Reference, RegistryConfig};
use serde_json::json;

use crate::faults::two_layers;
use crate::liar::{Answer, Liar, field};
use crate::pull::{assert_nothing_left, quick, store};
use crate::registry::Registry;

/// `user:password` in base64.
fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    let both = format!("{user}:{password}");
    base64::engine::general_purpose::STANDARD.encode(both)
}

fn user(name: &str, password: &str) -> Credentials {
    let (username, password) = (name.to_owned(), password.to_owned());
    Credentials { username, password, ..Credentials::default() }
}

async fn pull(
    store: &ImageStore,
    name: &str,
    credentials: Option<Credentials>,
    registry: &RegistryConfig,
) -> Result<(), berth_image::Error> {
    let reference = Reference::parse(name).unwrap();
    store.pull(&reference, credentials, registry).await?;
    store.remove(name).await?;
    store.settle().await
}

/// No file below holds this.
fn assert_not_stored(root: &Path, secret: &str) {
    for entry in std::fs::read_dir(root).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            assert_not_stored(&path, secret);
        } else {
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!found, "{}", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_registry_lets_in_who_has_the_password() {
    let plain = Registry::start();
    let image = two_layers();
    plain.push("app", "v1", &image);
    let registry = plain.with_password();
    let name = format!("{}/app:v1", registry.address);
    let (dir, store) = store().await;
    let config = |auth: &str| {
        let path = dir.path().join("config.json");
        std::fs::write(&path, json!({"auths": {&registry.address: {"auth": auth}}}).to_string())
            .unwrap();
        RegistryConfig { auth_file: Some(path), ..quick() }
    };
    let right = user("user", "secret-word");
    pull(&store, &name, Some(right.clone()), &quick()).await.unwrap();
    pull(&store, &name, None, &config(&basic("user", "secret-word"))).await.unwrap();
    // The caller's word counts before the file's.
    let wrong_file = config(&basic("user", "wrong-word"));
    pull(&store, &name, Some(right.clone()), &wrong_file).await.unwrap();
    let elsewhere = Credentials { server_address: "other.test".to_owned(), ..right };
    let refused = [
        (None, quick()),
        (None, wrong_file),
        (Some(user("user", "wrong-word")), quick()),
        (Some(elsewhere), quick()),
        (
            Some(Credentials { registry_token: "wrong-word".to_owned(), ..Credentials::default() }),
            quick(),
        ),
    ];
    for (credentials, config) in refused {
        let error = pull(&store, &name, credentials, &config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{}", error.report());
        assert!(error.report().contains("401"), "{}", error.report());
        assert!(!error.report().contains("word") && !format!("{error:?}").contains("word"));
    }
    assert_nothing_left(&dir, &store).await;
    assert_not_stored(&dir.path().join("image"), "secret-word");
}

/// A registry that wants tokens, and their server. It serves whoever shows `Bearer good`.
struct Guarded {
    front: Liar,
    tokens: Liar,
}

fn guarded() -> Guarded {
    let (front, tokens) = (Liar::start(), Liar::start());
    let image = two_layers();
    let realm = format!("http://{}/token", tokens.address);
    let guard = |honest: Answer| {
        let challenge = format!(
            "www-authenticate: Bearer realm=\"{realm}\",service=\"the service\",\
             scope=\"repository:x/y:pull\"\r\n"
        );
        Answer::call(move |request, _| match field(request, "authorization") {
            Some("bearer good") => honest.clone(),
            _ => Answer::status("401 Unauthorized", &challenge),
        })
    };
    for blob in image.layers.iter().chain([&image.config]) {
        front.blob(blob, guard(Answer::blob(&blob.bytes)));
    }
    front.tag("t", guard(Answer::manifest(&image.manifest)));
    Guarded { front, tokens }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_fetched_with_what_there_is_to_log_in_with() {
    let Guarded { front, tokens } = guarded();
    let (dir, store) = store().await;
    let name = front.name("t");
    let bodies = Arc::new(Mutex::new(Vec::new()));
    // Without a name: by GET.
    tokens.path("/token", Answer::json(&json!({"token": "good"})));
    pull(&store, &name, None, &quick()).await.unwrap();
    assert_eq!(tokens.count(""), 1, "one token for all of a pull");
    let request = tokens.requests().remove(0);
    let query = "get /token?service=the%20service&scope=repository%3ax%2fy%3apull ";
    assert!(request.starts_with(query), "{request}");
    assert!(field(&request, "authorization").is_none());
    // With a password: by GET with it, or by POST where the server knows no GET.
    pull(&store, &name, Some(user("Me", "pass word")), &quick()).await.unwrap();
    let request = tokens.requests().pop().unwrap();
    let wanted = format!("basic {}", basic("Me", "pass word").to_lowercase());
    assert_eq!(field(&request, "authorization"), Some(wanted.as_str()));
    assert!(request.contains("&account=me "), "{request}");
    let seen = bodies.clone();
    let post_only = move |request: &str, body: &[u8]| {
        if request.starts_with("get") {
            return Answer::status("405 Method Not Allowed", "");
        }
        seen.lock().unwrap().push(String::from_utf8(body.to_vec()).unwrap());
        Answer::json(&json!({"access_token": "good", "expires_in": 60}))
    };
    tokens.path("/token", Answer::call(post_only));
    pull(&store, &name, Some(user("Me", "pass word")), &quick()).await.unwrap();
    let identity = Credentials { identity_token: "i/t".to_owned(), ..Credentials::default() };
    pull(&store, &name, Some(identity), &quick()).await.unwrap();
    let both = "service=the%20service&scope=repository%3Ax%2Fy%3Apull&client_id=berth&";
    assert_eq!(
        *bodies.lock().unwrap(),
        [
            format!("{both}grant_type=password&username=Me&password=pass%20word"),
            format!("{both}grant_type=refresh_token&refresh_token=i%2Ft"),
        ]
    );
    // A token as it is asks nobody.
    let asked = tokens.requests().len();
    let token = Credentials { registry_token: "good".to_owned(), ..Credentials::default() };
    pull(&store, &name, Some(token), &quick()).await.unwrap();
    assert_eq!(tokens.requests().len(), asked);
    assert_nothing_left(&dir, &store).await;
    for secret in ["pass word", "i/t"] {
        assert_not_stored(&dir.path().join("image"), secret);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_servers_that_lie_are_refused_and_loops_end() {
    use ErrorKind::{Invalid, Unauthorized, Unavailable};
    let html = Answer::blob(b"<html>please log in</html>");
    let cases = [
        ("another token", Answer::json(&json!({"token": "bad"})), Unauthorized, "401"),
        ("refusal", Answer::status("401 Unauthorized", ""), Unauthorized, "/token"),
        ("forbidden", Answer::status("403 Forbidden", ""), Unauthorized, "403"),
        ("html", html, Invalid, "no token"),
        ("empty", Answer::json(&json!({})), Invalid, "no token"),
        ("line break", Answer::json(&json!({"token": "a\r\nb: c"})), Invalid, "no token"),
        ("endless", Answer::Endless, Invalid, "1048576"),
        ("loop", Answer::redirect("/token"), Invalid, "redirects"),
        ("down", Answer::status("500 Internal Server Error", ""), Unavailable, "500"),
    ];
    for (what, answer, kind, words) in cases {
        let Guarded { front, tokens } = guarded();
        let (dir, store) = store().await;
        tokens.path("/token", answer);
        let given = Some(user("me", "pass-word"));
        let error = pull(&store, &front.name("t"), given, &quick()).await.unwrap_err();
        let report = error.report();
        assert_eq!(error.kind(), kind, "{what}: {report}");
        assert!(report.contains(words) && report.contains(&front.name("t")), "{what}: {report}");
        assert!(!report.contains("pass-word"), "{report}");
        assert!(front.requests().len() <= 10, "{what}: it ends");
        assert_nothing_left(&dir, &store).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_expires_is_fetched_anew() {
    let Guarded { front, tokens } = guarded();
    let (_dir, store) = store().await;
    tokens.path("/token", Answer::json(&json!({"token": "good"})));
    // After the manifest the first token is good no more.
    let image = two_layers();
    let realm = format!("http://{}/token", tokens.address);
    let once = Arc::new(Mutex::new(false));
    for blob in &image.layers {
        let (bytes, realm, once) = (blob.bytes.clone(), realm.clone(), once.clone());
        front.blob(
            blob,
            Answer::call(move |_, _| {
                if !std::mem::replace(&mut *once.lock().unwrap(), true) {
                    let challenge = format!("www-authenticate: Bearer realm=\"{realm}\"\r\n");
                    return Answer::status("401 Unauthorized", &challenge);
                }
                Answer::blob(&bytes)
            }),
        );
    }
    pull(&store, &front.name("t"), None, &quick()).await.unwrap();
    assert_eq!(tokens.count("/token"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mirror_is_told_its_own_and_redirects_nothing() {
    let (mirror, server, storage) = (Liar::start(), Liar::start(), Liar::start());
    let (dir, store) = store().await;
    let image = two_layers();
    let guard = |answer: Answer, wanted: String| {
        Answer::call(move |request, _| match field(request, "authorization") {
            Some(shown) if shown == wanted => answer.clone(),
            _ => Answer::status("401 Unauthorized", "www-authenticate: Basic realm=\"x\"\r\n"),
        })
    };
    let lower = |name, word| format!("basic {}", basic(name, word).to_lowercase());
    let (of_mirror, of_server) = (lower("mirror", "mirror-word"), lower("given", "given-word"));
    // The mirror has the manifest and sends blobs elsewhere; one only the server has.
    mirror.tag("t", guard(Answer::manifest(&image.manifest), of_mirror.clone()));
    for (n, blob) in [&image.config, &image.layers[0]].into_iter().enumerate() {
        let to = format!("http://{}/far/{n}?X-Signature=sig-word", storage.address);
        mirror.blob(blob, guard(Answer::redirect(&to), of_mirror.clone()));
        storage.path(&format!("/far/{n}"), Answer::blob(&blob.bytes));
    }
    let last = &image.layers[1];
    server.blob(last, guard(Answer::blob(&last.bytes), of_server));
    let certs = dir.path().join("certs.d/_default");
    std::fs::create_dir_all(&certs).unwrap();
    let (first, second) = (&mirror.address, &server.address);
    let hosts = format!("server = \"http://{second}\"\n[host.\"http://{first}\"]\n");
    std::fs::write(certs.join("hosts.toml"), hosts).unwrap();
    let file = dir.path().join("config.json");
    let entry = json!({"username": "mirror", "password": "mirror-word"});
    std::fs::write(&file, json!({"auths": {first: entry}}).to_string()).unwrap();
    let registry = RegistryConfig {
        config_path: Some(dir.path().join("certs.d")),
        auth_file: Some(file),
        ..quick()
    };
    let given = || Some(user("given", "given-word"));
    pull(&store, "upstream.test/x/y:t", given(), &registry).await.unwrap();
    let storage_seen = storage.requests();
    assert_eq!(storage_seen.len(), 2);
    assert!(storage_seen.iter().all(|request| !request.contains("authorization")));
    let given_word = basic("given", "given-word").to_lowercase();
    assert!(mirror.requests().iter().all(|request| !request.contains(&given_word)));
    // What signed addresses hold is a secret, too.
    storage.path("/far/1", Answer::status("403 Forbidden", ""));
    server.blob(&image.layers[0], Answer::status("404 Not Found", ""));
    let error = pull(&store, "upstream.test/x/y:t", given(), &registry).await.unwrap_err();
    assert!(error.report().contains("/far/1"), "{}", error.report());
    assert!(!error.report().contains("word"), "{}", error.report());
}
