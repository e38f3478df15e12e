//! What the error channel says at the end: Kubernetes' `Status`.

use serde_json::json;

/// How a command, or the way to it, ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All went well.
    Success,
    /// The command ended with this code, which is not 0.
    Exit(u32),
    /// It did not come to that.
    Failure(String),
}

impl Outcome {
    /// What is written for it. Before v4 it is text, and nothing means success.
    pub(super) fn render(&self, as_status: bool) -> String {
        match self {
            _ if as_status => self.status().to_string(),
            Self::Success => String::new(),
            Self::Exit(code) => non_zero(*code),
            Self::Failure(why) => internal(why),
        }
    }

    fn status(&self) -> serde_json::Value {
        match self {
            Self::Success => json!({"metadata": {}, "status": "Success"}),
            Self::Exit(code) => json!({
                "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                "message": non_zero(*code),
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failure(why) => json!({
                "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
                "message": internal(why), "details": {"causes": [{"message": why}]},
            }),
        }
    }
}

fn non_zero(code: u32) -> String {
    format!("command terminated with non-zero exit code: exit status {code}")
}

fn internal(why: &str) -> String {
    format!("Internal error occurred: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_told_as_the_version_wants_it() {
        assert_eq!(Outcome::Success.render(false), "");
        let text = Outcome::Exit(5).render(false);
        assert_eq!(text, "command terminated with non-zero exit code: exit status 5");
        let status: serde_json::Value =
            serde_json::from_str(&Outcome::Exit(137).render(true)).unwrap();
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "137"}));
        assert_eq!(status["reason"], "NonZeroExitCode");
        let ok: serde_json::Value = serde_json::from_str(&Outcome::Success.render(true)).unwrap();
        assert_eq!(ok["status"], "Success");
        let failure = Outcome::Failure("no such \"program\"".into());
        let status: serde_json::Value = serde_json::from_str(&failure.render(true)).unwrap();
        assert_eq!(status["code"], 500);
        assert!(status["message"].as_str().unwrap().contains("no such \"program\""));
    }
}
