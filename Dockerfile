# Step 5, test.py, on the CPU with the model in the box; installs requirements-segment.txt (1.2 GB) and no TensorFlow:
#   docker build -t retinal-fluid .
#   docker run --rm --user $(id -u):$(id -g) -v "$PWD:/data" retinal-fluid scan.mhd --output segmented --model box
FROM python:3.12-slim
WORKDIR /app
COPY requirements-segment.txt .
RUN pip install --no-cache-dir -r requirements-segment.txt
COPY config.py model.py test.py ./
COPY recipes recipes
COPY utils utils
COPY weights weights
# A user without a home has no other place for caches.
ENV NUMBA_CACHE_DIR=/tmp MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /data
ENTRYPOINT ["python", "/app/test.py"]
