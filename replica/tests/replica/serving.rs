//! Requests through any replica, also while replicas die and come back.

use crate::service::Service;

#[tokio::test]
async fn request_through_each_replica_is_answered() {
    let service = Service::born(3).await;
    for (index, replica) in service.replicas.iter().enumerate() {
        let key = format!("key-{index}");
        assert_eq!(replica.put(&key, "first").await.expect("a majority runs"), 1);
        for other in &service.replicas {
            assert_eq!(other.get(&key).await.expect("a majority runs").as_deref(), Some("first"));
        }
    }
}
