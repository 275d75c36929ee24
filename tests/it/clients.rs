//! Clients nobody here wrote: `ollama-rs` and `async-openai` see what they expect.

use std::time::Duration;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::types::chat::{
    ChatCompletionRequestUserMessageArgs, ChatCompletionStreamOptions, CreateChatCompletionRequest,
    CreateChatCompletionRequestArgs,
};
use async_openai::types::completions::CreateCompletionRequestArgs;
use async_openai::types::embeddings::CreateEmbeddingRequestArgs;
use futures_util::StreamExt;
use ollama_rs::Ollama;
use ollama_rs::generation::chat::ChatMessage;
use ollama_rs::generation::chat::request::ChatMessageRequest;
use ollama_rs::generation::completion::request::GenerationRequest;
use ollama_rs::generation::embeddings::request::{EmbeddingsInput, GenerateEmbeddingsRequest};
use pointsman::pretend::Profile;
use serde_json::json;

use crate::pretend;
use crate::router::Router;

const GAP: Duration = Duration::from_millis(2);

#[tokio::test]
async fn ollama_rs_lists_chats_generates_embeds_and_sees_errors() {
    let backend = pretend(Profile::ollama(["m:latest", "n:latest"]).paced(GAP, GAP));
    let openai = pretend(Profile::openai(["gpt"]));
    let router = Router::before(&[backend.endpoint(), openai.endpoint()], "");
    let client = Ollama::try_new(router.url("")).unwrap();

    let mut models: Vec<_> = client.list_local_models().await.unwrap().into_iter().map(|m| m.name).collect();
    models.sort();
    assert_eq!(models, ["gpt", "m:latest", "n:latest"]);
    client.show_model_info("m".into()).await.unwrap();

    let prompt = || GenerationRequest::new("m".into(), "hello you there");
    let whole = client.generate(prompt()).await.unwrap();
    assert_eq!((whole.prompt_eval_count, whole.eval_count), (Some(3), Some(16)));
    let (mut pieces, mut counted) = (0, None);
    let mut stream = client.generate_stream(prompt()).await.unwrap();
    while let Some(batch) = stream.next().await {
        for piece in batch.unwrap() {
            pieces += 1;
            counted = counted.or(piece.eval_count);
        }
    }
    assert_eq!((pieces, counted), (17, Some(16)));

    let chat = ChatMessageRequest::new("m".into(), vec![ChatMessage::user("a b c d".into())]);
    let whole = client.send_chat_messages(chat.clone()).await.unwrap();
    assert_eq!(whole.final_data.unwrap().prompt_eval_count, 4);
    let stream = client.send_chat_messages_stream(chat).await.unwrap();
    let pieces: Vec<_> = stream.map(Result::unwrap).collect().await;
    assert_eq!(pieces.last().unwrap().final_data.as_ref().unwrap().eval_count, 16);

    let inputs = EmbeddingsInput::Multiple(vec!["x".into(), "y z".into()]);
    let embedded = client.generate_embeddings(GenerateEmbeddingsRequest::new("n".into(), inputs)).await;
    assert_eq!(embedded.unwrap().embeddings.len(), 2);

    let error = client.generate(GenerationRequest::new("nobody".into(), "hi")).await.unwrap_err().to_string();
    assert!(error.contains("model 'nobody' is not served") && error.contains(&backend.endpoint()), "{error}");

    router.assert_idle().await;
    let counts = router.get("/api/token_counts").await;
    let input: u64 =
        counts["breakdown"].as_array().unwrap().iter().map(|r| r["input_tokens"].as_u64().unwrap()).sum();
    assert_eq!(input, 2 * 3 + 2 * 4 + 3, "{counts}");
}

fn chat(model: &str) -> CreateChatCompletionRequest {
    let message = ChatCompletionRequestUserMessageArgs::default().content("hi to you").build().unwrap();
    CreateChatCompletionRequestArgs::default().model(model).messages([message.into()]).build().unwrap()
}

#[tokio::test]
async fn async_openai_lists_chats_completes_embeds_and_sees_errors_on_every_kind_of_endpoint() {
    for profile in [Profile::openai(["m"]), Profile::ollama(["m"]), Profile::llama_server(["m"])] {
        let backend = pretend(profile.api_key("endpoint-key"));
        let (kind, endpoint) = (backend.profile().kind, backend.endpoint());
        let list = match kind {
            pointsman::pretend::Kind::LlamaServer => "endpoints: []\nllama_server_endpoints:",
            _ => "endpoints:",
        };
        let router =
            Router::start(&format!("{list}\n  - {endpoint}\napi_keys:\n  \"{endpoint}\": endpoint-key\n"));
        let config = OpenAIConfig::new().with_api_base(router.url("/v1")).with_api_key("client-key");
        let client = Client::with_config(config);

        assert_eq!(client.models().list().await.unwrap().data[0].id, "m", "{kind:?}");
        assert_eq!(client.models().retrieve("m").await.unwrap().id, "m", "{kind:?}");

        let whole = client.chat().create(chat("m")).await.unwrap();
        assert_eq!(whole.usage.unwrap().total_tokens, 3 + 16, "{kind:?}");

        for asked in [false, true] {
            let mut request = chat("m");
            request.stream_options = asked.then_some(ChatCompletionStreamOptions {
                include_usage: Some(true),
                include_obfuscation: None,
            });
            let mut stream = client.chat().create_stream(request).await.unwrap();
            let (mut text, mut usage, mut empty) = (String::new(), None, 0);
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.unwrap();
                usage = chunk.usage.map(|usage| usage.total_tokens).or(usage);
                empty += usize::from(chunk.choices.is_empty());
                for choice in chunk.choices {
                    text += choice.delta.content.as_deref().unwrap_or_default();
                }
            }
            assert_eq!(text.split_whitespace().count(), 16, "{kind:?}");
            let expected = if asked { (Some(19), 1) } else { (None, 0) };
            assert_eq!((usage, empty), expected, "{kind:?}: usage is passed on only to those who asked");
        }

        let prompt = CreateCompletionRequestArgs::default().model("m").prompt("a b").build().unwrap();
        let whole = client.completions().create(prompt.clone()).await.unwrap();
        assert_eq!(whole.usage.unwrap().prompt_tokens, 2, "{kind:?}");
        let mut stream = client.completions().create_stream(prompt).await.unwrap();
        let mut text = String::new();
        while let Some(chunk) = stream.next().await {
            text += &chunk.unwrap().choices[0].text;
        }
        assert_eq!(text.split_whitespace().count(), 16, "{kind:?}");

        let inputs = CreateEmbeddingRequestArgs::default().model("m").input(["a", "b c"]).build().unwrap();
        let embedded = client.embeddings().create(inputs).await.unwrap();
        assert_eq!(embedded.data[1].embedding.len(), 64, "{kind:?}");

        let error = client.chat().create(chat("nobody")).await.unwrap_err();
        let OpenAIError::ApiError(error) = error else { panic!("{kind:?}: {error:?}") };
        assert!(format!("{error:?}").contains("model_not_found"), "{kind:?}: {error:?}");

        // Asked for usage or not, every request is counted: 5 chats of 3, 2 completions of 2, 3 words embedded.
        router.assert_idle().await;
        let counts = router.get("/api/token_counts").await;
        let row = &counts["breakdown"][0];
        assert_eq!(
            (&row["input_tokens"], &row["output_tokens"]),
            (&json!(3 * 3 + 2 * 2 + 3), &json!(5 * 16)),
            "{kind:?}"
        );
    }
}

#[tokio::test]
async fn the_clients_key_never_reaches_an_endpoint_and_the_endpoints_key_does() {
    let backend = pretend(Profile::openai(["m"]).api_key("endpoint-key"));
    let endpoint = backend.endpoint();
    let yaml = format!(
        "endpoints: [\"{endpoint}\"]\napi_keys: {{\"{endpoint}\": endpoint-key}}\nnomyo-router-api-key: secret\n"
    );
    let router = Router::start(&yaml);
    let ask = |key: Option<&str>, query: &str| {
        let mut request = router.http.get(router.url(&format!("/v1/models{query}")));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        async move { request.send().await.unwrap().status().as_u16() }
    };
    assert_eq!(ask(None, "").await, 401);
    assert_eq!(ask(Some("guess"), "").await, 403);
    assert_eq!(ask(Some("secret"), "").await, 200);
    assert_eq!(ask(None, "?api_key=secret").await, 200);
    assert_eq!(ask(None, "?api_key=guess").await, 403);
    assert_eq!(router.http.get(router.url("/")).send().await.unwrap().status(), 200);

    let body = crate::chat("m").to_string();
    let sent =
        router.http.post(router.url("/v1/chat/completions?api_key=secret")).body(body).send().await.unwrap();
    assert_eq!(sent.status(), 200);
    let seen = backend.last_ask().unwrap();
    assert_eq!(seen.header("authorization"), Some("Bearer endpoint-key"));
    assert_eq!(seen.query, "");
    assert!(!router.log().contains("secret") && !router.log().contains("endpoint-key"), "{}", router.log());
}
