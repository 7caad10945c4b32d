# python -m build --wheel && docker build -t dinoneck . && docker run -p 127.0.0.1:8000:8000 dinoneck user/name
FROM python:3.12-slim
ARG PIP_OPTIONS=""
COPY dist/dinoneck-*.whl /tmp/
RUN set -- /tmp/dinoneck-*.whl && pip install --no-cache-dir $PIP_OPTIONS "$1[serve]" && rm /tmp/*.whl
RUN useradd --create-home dinoneck
USER dinoneck
EXPOSE 8000
HEALTHCHECK CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=5)"
ENTRYPOINT ["dinoneck", "serve", "--host", "0.0.0.0"]
