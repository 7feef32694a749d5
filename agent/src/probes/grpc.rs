//! gRPC's own health check, `grpc.health.v1.Health/Check`: SERVING is yes.

use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

const SERVING: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

pub(super) async fn check(host: &str, port: u16, service: &str) -> Result<(), String> {
    let address = format!("{host}:{port}");
    let failed = |error: &dyn std::error::Error| format!("grpc {address}: {error}");
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).map_err(|error| failed(&error))?;
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| format!("grpc {address}: cannot connect: {error}"))?;
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| failed(&error))?;
    let codec: ProstCodec<HealthCheckRequest, HealthCheckResponse> = ProstCodec::default();
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let request = Request::new(HealthCheckRequest { service: service.to_owned() });
    match client.unary(request, path, codec).await {
        Ok(answer) if answer.get_ref().status == SERVING => Ok(()),
        Ok(answer) => {
            let status = answer.get_ref().status;
            Err(format!("service unhealthy (responded with status {status})"))
        }
        Err(status) if status.code() == Code::Unimplemented => Err(format!(
            "grpc {address} does not implement grpc.health.v1.Health; \
             hint: add the health service, or use another probe"
        )),
        Err(status) => Err(format!("grpc {address}: {}", status.message())),
    }
}
