//! Which gRPC code a failure gets. kubelet reads only NOT_FOUND, DEADLINE_EXCEEDED and
//! UNIMPLEMENTED; the others are for people.

use berth_image::ErrorKind;
use tonic::{Code, Status};

use crate::pod;

/// What a message must begin with for kubelet to tell these failures apart, which it does in an
/// error of code UNKNOWN only (`k8s.io/cri-api/pkg/errors`).
const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";
const SIGNATURE: &str = "SignatureValidationFailed";
const IMAGE_VOLUME: &str = "ImageVolumeMountFailed";

/// Why an RPC failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// A field of the request, or the work on a pod or container.
    #[error(transparent)]
    Pod(#[from] pod::Error),
    /// The work on an image.
    #[error("{}", .0.report())]
    Image(#[from] berth_image::Error),
}

impl Failure {
    fn code(&self) -> Code {
        match self {
            Self::Pod(error) => of_pod(error.kind()),
            Self::Image(error) => of_image(error.kind()),
        }
    }
}

impl Failure {
    /// The word that kubelet knows the failure by.
    fn word(&self) -> Option<&'static str> {
        match self {
            Self::Pod(error) => match error.kind() {
                pod::Kind::Refused => Some(SIGNATURE),
                pod::Kind::ImageVolume => Some(IMAGE_VOLUME),
                _ => None,
            },
            Self::Image(error) => match error.kind() {
                ErrorKind::Unavailable => Some(REGISTRY_UNAVAILABLE),
                ErrorKind::Refused => Some(SIGNATURE),
                _ => None,
            },
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        match failure.word() {
            Some(word) => Self::unknown(format!("{word}: {failure}")),
            None => Self::new(failure.code(), failure.to_string()),
        }
    }
}

fn of_pod(kind: pod::Kind) -> Code {
    match kind {
        pod::Kind::NotFound => Code::NotFound,
        pod::Kind::Exists => Code::AlreadyExists,
        pod::Kind::Invalid => Code::InvalidArgument,
        pod::Kind::NotReady => Code::FailedPrecondition,
        pod::Kind::Busy => Code::Aborted,
        pod::Kind::Refused | pod::Kind::ImageVolume => Code::Unknown,
        pod::Kind::Deadline => Code::DeadlineExceeded,
        pod::Kind::Full => Code::ResourceExhausted,
        pod::Kind::Unavailable => Code::Unavailable,
        pod::Kind::Internal => Code::Internal,
    }
}

pub(crate) fn of_image(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Exists => Code::AlreadyExists,
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::NotReady => Code::FailedPrecondition,
        ErrorKind::Unauthorized => Code::Unauthenticated,
        ErrorKind::Unavailable | ErrorKind::Refused => Code::Unknown,
        ErrorKind::Full => Code::ResourceExhausted,
        ErrorKind::Cancelled => Code::Cancelled,
        _ => Code::Internal,
    }
}

/// The answer of an RPC that is not built.
pub(super) fn unimplemented<T>(method: &str) -> Result<T, Status> {
    Err(Status::unimplemented(format!("{method} is not implemented")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_pods_have_their_codes() {
        use pod::Kind;
        let table = [
            (Kind::NotFound, Code::NotFound),
            (Kind::Exists, Code::AlreadyExists),
            (Kind::Invalid, Code::InvalidArgument),
            (Kind::NotReady, Code::FailedPrecondition),
            (Kind::Busy, Code::Aborted),
            (Kind::Refused, Code::Unknown),
            (Kind::ImageVolume, Code::Unknown),
            (Kind::Deadline, Code::DeadlineExceeded),
            (Kind::Full, Code::ResourceExhausted),
            (Kind::Unavailable, Code::Unavailable),
            (Kind::Internal, Code::Internal),
        ];
        for (kind, code) in table {
            assert_eq!(of_pod(kind), code, "{kind:?}");
        }
    }

    #[test]
    fn kinds_of_images_have_their_codes() {
        let table = [
            (ErrorKind::NotFound, Code::NotFound),
            (ErrorKind::Invalid, Code::InvalidArgument),
            (ErrorKind::Unauthorized, Code::Unauthenticated),
            (ErrorKind::NotReady, Code::FailedPrecondition),
            (ErrorKind::Unavailable, Code::Unknown),
            (ErrorKind::Refused, Code::Unknown),
            (ErrorKind::Full, Code::ResourceExhausted),
            (ErrorKind::Cancelled, Code::Cancelled),
            (ErrorKind::Internal, Code::Internal),
        ];
        for (kind, code) in table {
            assert_eq!(of_image(kind), code, "{kind:?}");
        }
    }

    #[test]
    fn a_refused_field_is_named_with_its_value() {
        let refusal = pod::Error::invalid("config.hostname", "a b", "has a blank");
        let status = Status::from(Failure::from(refusal));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("config.hostname"), "{}", status.message());
        assert!(status.message().contains("a b"), "{}", status.message());
    }

    #[test]
    fn what_is_not_built_says_its_name() {
        let status = unimplemented::<()>("Exec").unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unimplemented, "Exec is not implemented")
        );
    }
}
