//! The way to the daemon.

use berth_proto::control::control_client::ControlClient;
use berth_proto::cri::image_service_client::ImageServiceClient;
use berth_runtime::config;
use tonic::transport::{Channel, Endpoint};

use crate::args::Global;
use crate::outcome::{Failure, Outcome};

/// The longest list of images.
const MAX_MESSAGE: usize = 64 << 20;

/// A connection that stands.
pub(crate) struct Client {
    pub(crate) images: ImageServiceClient<Channel>,
    pub(crate) control: ControlClient<Channel>,
}

impl Client {
    pub(crate) async fn connect(global: &Global) -> Outcome<Self> {
        let socket = socket(global)?;
        let unreachable = |source| Failure::Unreachable { socket: socket.clone(), source };
        let endpoint = Endpoint::from_shared(format!("unix://{socket}")).map_err(unreachable)?;
        let channel = endpoint.connect().await.map_err(unreachable)?;
        Ok(Self {
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            control: ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
        })
    }
}

fn socket(global: &Global) -> Outcome<String> {
    match &global.address {
        Some(address) => {
            let socket = address.strip_prefix("unix://").unwrap_or(address);
            if socket.starts_with('/') {
                return Ok(socket.to_owned());
            }
            let reason = format!("--address: {address:?} is not the absolute path of a socket");
            Err(Failure::Usage(reason))
        }
        None => Ok(config::load(global.config.as_deref())?.cri.socket.display().to_string()),
    }
}
