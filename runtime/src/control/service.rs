//! The generated trait: which handler answers which RPC.

use std::sync::Arc;

use berth_proto::control;
use berth_proto::control::control_server::Control as Service;
use tonic::{Request, Response, Status, Streaming};

use super::answer::{Streamed, stream};
use super::{Control, image};

#[tonic::async_trait]
impl Service for Control {
    type ImagePullStream = Streamed<control::ImagePullResponse>;
    async fn image_pull(
        &self,
        request: Request<control::ImagePullRequest>,
    ) -> Result<Response<Self::ImagePullStream>, Status> {
        let front = Arc::clone(&self.front);
        Ok(stream(|parts| image::pull(front, request.into_inner(), parts)))
    }

    async fn image_tag(
        &self,
        request: Request<control::ImageTagRequest>,
    ) -> Result<Response<control::ImageTagResponse>, Status> {
        image::tag(&self.front, request.into_inner()).await.map(Response::new)
    }

    type ImageLoadStream = Streamed<control::ImageLoadResponse>;
    async fn image_load(
        &self,
        request: Request<Streaming<control::ImageLoadRequest>>,
    ) -> Result<Response<Self::ImageLoadStream>, Status> {
        let front = Arc::clone(&self.front);
        Ok(stream(|parts| image::load(front, request.into_inner(), parts)))
    }

    type ImageImportStream = Streamed<control::ImageImportResponse>;
    async fn image_import(
        &self,
        _: Request<Streaming<control::ImageImportRequest>>,
    ) -> Result<Response<Self::ImageImportStream>, Status> {
        Err(Status::unimplemented("ImageImport is not implemented"))
    }

    type ImageSaveStream = Streamed<control::ImageSaveResponse>;
    async fn image_save(
        &self,
        _: Request<control::ImageSaveRequest>,
    ) -> Result<Response<Self::ImageSaveStream>, Status> {
        Err(Status::unimplemented("ImageSave is not implemented"))
    }

    async fn image_inspect(
        &self,
        request: Request<control::ImageInspectRequest>,
    ) -> Result<Response<control::ImageInspectResponse>, Status> {
        image::inspect(&self.front, request.into_inner()).await.map(Response::new)
    }
}
