# Images for AWS Lambda (--target lambda) and for everything else (--target server, the default), with the model in them
# (--target lambda-with-model, server-with-model, and --build-arg MODEL=<uri>). ./build image says and runs the command.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /src
# First only what the engine is made from: its ten minutes are spent again only if one of these changes.
COPY build requirements.txt ./
COPY commands/__init__.py commands/engine.py commands/engine_wheel.py commands/environment.py commands/kept_build.py \
     commands/portable_engine.py commands/terminal.py commands/
COPY llamafn/__init__.py llamafn/cpu_quota.py llamafn/errors.py llamafn/
RUN ./build engine
COPY . .
RUN ./build package /package/server --for server && ./build package /package/lambda --for lambda

FROM build AS model
ARG MODEL
RUN LOCAL_MODEL_PATH=/model/model.gguf ./build fetch "${MODEL:?--build-arg MODEL=hf://..., s3://... or https://...}"

FROM public.ecr.aws/lambda/python:${PYTHON} AS lambda
COPY --from=build /package/lambda ${LAMBDA_TASK_ROOT}
# AWS's own client cannot stream. Lambda runs the function as a user of its own, whatever is said here.
USER 65532:65532
ENTRYPOINT ["python3", "-m", "llamafn.platforms.lambda_runtime"]
CMD ["handler.handler"]

FROM lambda AS lambda-with-model
ARG MODEL
COPY --from=model /model/model.gguf /opt/model/model.gguf
ENV MODEL=${MODEL} LOCAL_MODEL_PATH=/opt/model/model.gguf

FROM python:${PYTHON}-slim AS server-alone
WORKDIR /app
COPY --from=build /package/server .
ENV HOST=0.0.0.0 PORT=8080
EXPOSE 8080
USER 65532:65532
CMD ["python", "-m", "gunicorn", "handler:app"]

FROM server-alone AS server-with-model
ARG MODEL
COPY --from=model /model/model.gguf /opt/model/model.gguf
ENV MODEL=${MODEL} LOCAL_MODEL_PATH=/opt/model/model.gguf

# The last one is what `docker build .` and `gcloud run deploy --source .` make.
FROM server-alone AS server
