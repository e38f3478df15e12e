//! The generated trait: which handler answers which RPC.

use std::sync::Arc;

use berth_proto::control;
use berth_proto::control::control_server::Control as Service;
use tonic::{Request, Response, Status, Streaming};

use super::answer::{Streamed, stream};
use super::{Control, archive, image, upkeep};

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
        Ok(stream(|parts| archive::load(front, request.into_inner(), parts)))
    }

    type ImageImportStream = Streamed<control::ImageImportResponse>;
    async fn image_import(
        &self,
        request: Request<Streaming<control::ImageImportRequest>>,
    ) -> Result<Response<Self::ImageImportStream>, Status> {
        let front = Arc::clone(&self.front);
        Ok(stream(|parts| archive::import(front, request.into_inner(), parts)))
    }

    type ImageSaveStream = Streamed<control::ImageSaveResponse>;
    async fn image_save(
        &self,
        request: Request<control::ImageSaveRequest>,
    ) -> Result<Response<Self::ImageSaveStream>, Status> {
        let front = Arc::clone(&self.front);
        Ok(stream(|parts| archive::save(front, request.into_inner(), parts)))
    }

    type ImagePushStream = Streamed<control::ImagePushResponse>;
    async fn image_push(
        &self,
        request: Request<control::ImagePushRequest>,
    ) -> Result<Response<Self::ImagePushStream>, Status> {
        let front = Arc::clone(&self.front);
        Ok(stream(|parts| image::push(front, request.into_inner(), parts)))
    }

    type FsckStream = Streamed<control::FsckResponse>;
    async fn fsck(
        &self,
        request: Request<control::FsckRequest>,
    ) -> Result<Response<Self::FsckStream>, Status> {
        let front = Arc::clone(&self.front);
        Ok(stream(|parts| upkeep::fsck(front, request.into_inner(), parts)))
    }

    async fn disk_usage(
        &self,
        _: Request<control::DiskUsageRequest>,
    ) -> Result<Response<control::DiskUsageResponse>, Status> {
        upkeep::disk_usage(&self.front).await.map(Response::new)
    }

    async fn gc(
        &self,
        request: Request<control::GcRequest>,
    ) -> Result<Response<control::GcResponse>, Status> {
        upkeep::gc(&self.front, request.into_inner()).await.map(Response::new)
    }

    async fn explain(
        &self,
        request: Request<control::ExplainRequest>,
    ) -> Result<Response<control::ExplainResponse>, Status> {
        upkeep::explain(&self.front, request.get_ref()).map(Response::new)
    }

    async fn image_inspect(
        &self,
        request: Request<control::ImageInspectRequest>,
    ) -> Result<Response<control::ImageInspectResponse>, Status> {
        image::inspect(&self.front, request.into_inner()).await.map(Response::new)
    }
}
