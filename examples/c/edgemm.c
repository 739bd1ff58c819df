/* Draws a picture, or says what is in one, with a bundle that `edgemm export --one-call draw,read,tokenize` wrote.
 *
 *     edgemm_c BUNDLE draw "red heart" heart.png [SEED | NOISE.f32]
 *     edgemm_c BUNDLE ask heart.png "What is this?" [MOST_TOKENS]
 *
 * ONNX Runtime's C API runs the graphs, cJSON reads the manifest, libcrypto hashes, libpng reads and writes pictures, and
 * onnxruntime-extensions ($EDGEMM_EXTENSIONS, a library) makes ids of words.  No Python.  Pictures to ask about are laid on
 * the bundle's background and padded to a square.  What is made stays until the program ends.
 * Exit codes are edgemm's: 0 done, 2 usage, 3 bad input or bundle, 4 something is missing here.
 */
#include <cjson/cJSON.h>
#include <limits.h>
#include <math.h>
#include <openssl/evp.h>
#include <png.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onnxruntime_c_api.h"

#define TARGET "cpu"
enum { MOST_TENSORS = 1024, SCHEMA = 1 };

typedef struct { OrtSession *session; size_t inputs, outputs; char *in[MOST_TENSORS], *out[MOST_TENSORS]; } Graph;
static const OrtApi *ort;
static OrtEnv *env;
static OrtAllocator *allocator;
static OrtMemoryInfo *memory;
static const char *bundle;
static cJSON *manifest;

static void die(int code, const char *format, ...) {
    va_list words;
    va_start(words, format);
    fprintf(stderr, "edgemm_c: error: ");
    vfprintf(stderr, format, words);
    fputc('\n', stderr);
    exit(code);
}
static void check(OrtStatus *status, const char *what) {
    if (status) die(3, "%s: %s", what, ort->GetErrorMessage(status));
}
static void *zeros(size_t bytes) {
    void *made = calloc(bytes ? bytes : 1, 1);
    if (!made) die(5, "out of memory: %zu bytes", bytes);
    return made;
}
static char *inside(const char *path) { /* a path of the manifest, in the bundle and nowhere else */
    if (path[0] == '/' || strstr(path, "..") || strchr(path, '\\')) die(3, "manifest.json: path '%s' leaves the bundle", path);
    size_t size = strlen(bundle) + strlen(path) + 2;
    char *whole = zeros(size);
    snprintf(whole, size, "%s/%s", bundle, path);
    return whole;
}
static unsigned char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    long end = !file || fseek(file, 0, SEEK_END) ? -1 : ftell(file);
    if (end < 0 || end == LONG_MAX) die(3, "%s: cannot be read: is it a file, and there?", path); /* folders say LONG_MAX */
    *size = (size_t)end, rewind(file);
    unsigned char *content = zeros(*size + 1);
    if (fread(content, 1, *size, file) != *size) die(3, "%s: cannot be read to its end", path);
    fclose(file);
    return content;
}
static cJSON *field(cJSON *object, const char *name) {
    cJSON *found = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!found) die(3, "manifest.json: field '%s' is missing", name);
    return found;
}
static const char *string(cJSON *object, const char *name) {
    cJSON *found = field(object, name);
    return cJSON_IsString(found) ? found->valuestring : (die(3, "manifest.json: field '%s' is no string", name), "");
}
static void check_file(cJSON *record) { /* size and SHA-256, before anybody opens it for another purpose */
    char *path = inside(record->string), found[65];
    unsigned char digest[EVP_MAX_MD_SIZE];
    size_t size;
    unsigned char *content = read_file(path, &size);
    if ((double)size != field(record, "size_bytes")->valuedouble) die(3, "%s: has %zu bytes, not those of the manifest", path, size);
    if (!EVP_Digest(content, size, digest, NULL, EVP_sha256(), NULL)) die(4, "libcrypto has no SHA-256");
    for (int i = 0; i < 32; i++) snprintf(found + 2 * i, 3, "%02x", digest[i]);
    const char *told = string(record, "sha256");
    if (strlen(told) != 64) die(3, "%s: its SHA-256 in the manifest has %zu digits, not 64", path, strlen(told));
    if (strcmp(found, told)) die(3, "%s: was altered: SHA-256 is %.12s..., not the manifest's", path, found);
    free(content), free(path);
}
static void open_bundle(void) {
    size_t size;
    char *path = inside("manifest.json"), *text = (char *)read_file(path, &size);
    manifest = cJSON_Parse(text);
    if (!cJSON_IsObject(manifest)) die(3, "%s: not the JSON object that was expected", path);
    cJSON *record, *version = field(manifest, "schema_version");
    if (!cJSON_IsNumber(version) || version->valuedouble != SCHEMA) {
        char *found = cJSON_PrintUnformatted(version);
        die(3, "%s: schema_version is %s, this program reads %d", path, found, SCHEMA);
    }
    cJSON_ArrayForEach(record, field(manifest, "files")) check_file(record);
    free(path), free(text);
}
static Graph *open_graph(const char *path, const char *extensions) {
    Graph *graph = zeros(sizeof *graph);
    OrtSessionOptions *options;
    if (!cJSON_GetObjectItemCaseSensitive(field(manifest, "files"), path)) die(3, "%s: not in the bundle: export it with --one-call draw,read,tokenize", path);
    check(ort->CreateSessionOptions(&options), "options");
    if (extensions) check(ort->RegisterCustomOpsLibrary_V2(options, extensions), "EDGEMM_EXTENSIONS");
    char *whole = inside(path);
    check(ort->CreateSession(env, whole, options, &graph->session), path);
    check(ort->SessionGetInputCount(graph->session, &graph->inputs), path);
    check(ort->SessionGetOutputCount(graph->session, &graph->outputs), path);
    if (graph->inputs > MOST_TENSORS || graph->outputs > MOST_TENSORS) die(3, "%s: more than %d tensors", path, MOST_TENSORS);
    for (size_t i = 0; i < graph->inputs; i++) check(ort->SessionGetInputName(graph->session, i, allocator, &graph->in[i]), path);
    for (size_t i = 0; i < graph->outputs; i++) check(ort->SessionGetOutputName(graph->session, i, allocator, &graph->out[i]), path);
    return graph;
}
static Graph *open_call(const char *name) {
    cJSON *call = field(field(manifest, "one_call"), name), *variants = field(call, "variants");
    return open_graph(string(field(variants, TARGET), "graph"), NULL);
}
/* Shape and type of an input; named axes become `free_size`. Gives the bytes of such a tensor. */
static size_t shape_of(Graph *graph, size_t i, int64_t free_size, int64_t *dims, size_t *rank, ONNXTensorElementDataType *type) {
    OrtTypeInfo *info;
    const OrtTensorTypeAndShapeInfo *tensor;
    check(ort->SessionGetInputTypeInfo(graph->session, i, &info), graph->in[i]);
    check(ort->CastTypeInfoToTensorInfo(info, &tensor), graph->in[i]);
    check(ort->GetTensorElementType(tensor, type), graph->in[i]);
    check(ort->GetDimensionsCount(tensor, rank), graph->in[i]);
    if (*rank > 8) die(3, "%s: rank %zu", graph->in[i], *rank);
    check(ort->GetDimensions(tensor, dims, *rank), graph->in[i]);
    size_t bytes = *type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 ? 8 : *type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? 2 : *type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 ? 1 : 4;
    for (size_t k = 0; k < *rank; k++) bytes *= (size_t)(dims[k] = dims[k] < 0 ? free_size : dims[k]);
    return bytes;
}
static OrtValue *tensor(void *data, size_t bytes, const int64_t *dims, size_t rank, ONNXTensorElementDataType type) {
    OrtValue *value;
    check(ort->CreateTensorWithDataAsOrtValue(memory, data, bytes, dims, rank, type, &value), "tensor");
    return value;
}
static OrtValue *whole_numbers(int64_t *data, int64_t count, int rank) {
    int64_t dims[2] = {1, count};
    return tensor(data, 8 * (size_t)count, dims + 2 - rank, (size_t)rank, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
}
static void run(Graph *graph, OrtValue **in, OrtValue **out, const char *what) {
    check(ort->Run(graph->session, NULL, (const char *const *)graph->in, (const OrtValue *const *)in, graph->inputs, (const char *const *)graph->out, graph->outputs, out), what);
}

/* Words to the arrays that a graph reads: values of the tokenizer's outputs, in its order. */
static void tokenize(const char *path, const char *words, OrtValue **out) {
    const char *extensions = getenv("EDGEMM_EXTENSIONS");
    if (!extensions) die(4, "EDGEMM_EXTENSIONS is not set: the path of onnxruntime-extensions' library");
    Graph *graph = open_graph(path, extensions);
    int64_t one = 1;
    OrtValue *text;
    check(ort->CreateTensorAsOrtValue(allocator, &one, 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING, &text), "text");
    check(ort->FillStringTensor(text, &words, 1), "text");
    run(graph, &text, out, path);
}
static int64_t length_of(OrtValue *value) {
    OrtTensorTypeAndShapeInfo *info;
    size_t count;
    check(ort->GetTensorTypeAndShape(value, &info), "shape");
    check(ort->GetTensorShapeElementCount(info, &count), "shape");
    ort->ReleaseTensorTypeAndShapeInfo(info);
    return (int64_t)count;
}

/* Normal numbers by Box and Muller over splitmix64: not numpy's, so a seed's picture is this program's own. */
static void fill_noise(float *noise, size_t count, const char *told) {
    char *end;
    uint64_t state = strtoull(told, &end, 10);
    if (*end) {
        size_t size;
        unsigned char *given = read_file(told, &size);
        if (size != 4 * count) die(3, "%s: has %zu bytes, expected %zu of float32", told, size, 4 * count);
        memcpy(noise, given, size);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        double uniform[2];
        for (int k = 0; k < 2; k++) {
            uint64_t z = state += 0x9e3779b97f4a7c15u;
            z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
            z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
            uniform[k] = ((double)((z ^ (z >> 31)) >> 11) + 0.5) / 9007199254740992.0;
        }
        noise[i] = (float)(sqrt(-2 * log(uniform[0])) * cos(6.283185307179586 * uniform[1]));
    }
}
static void draw(const char *words, const char *output, const char *noise_told) {
    OrtValue *in[3] = {0}, *pixels = NULL;
    tokenize("tokenizer/draw_prompt.onnx", words, in);
    Graph *graph = open_call("draw");
    int64_t dims[8];
    size_t rank, bytes;
    ONNXTensorElementDataType type;
    bytes = shape_of(graph, 2, 32, dims, &rank, &type); /* of models with several sizes: 32 places a side */
    float *noise = zeros(bytes), *drawn;
    fill_noise(noise, bytes / 4, noise_told);
    in[2] = tensor(noise, bytes, dims, rank, type);
    run(graph, in, &pixels, "draw");
    OrtTensorTypeAndShapeInfo *info;
    check(ort->GetTensorTypeAndShape(pixels, &info), "pixels");
    check(ort->GetDimensions(info, dims, 4), "pixels");
    check(ort->GetTensorMutableData(pixels, (void **)&drawn), "pixels");
    size_t area = (size_t)(dims[2] * dims[3]);
    unsigned char *rows = zeros(3 * area);
    for (size_t i = 0; i < 3 * area; i++) rows[3 * (i % area) + i / area] = (unsigned char)lrintf(255 * drawn[i]);
    png_image image = {.version = PNG_IMAGE_VERSION, .width = (png_uint_32)dims[3], .height = (png_uint_32)dims[2], .format = PNG_FORMAT_RGB};
    if (!png_image_write_to_file(&image, output, 0, rows, 0, NULL)) die(3, "%s: cannot be written: %s", output, image.message);
    printf("Wrote %s (%d x %d)\n", output, (int)dims[3], (int)dims[2]);
}
static double cubic(double x) { /* Keys' kernel, as Pillow's bicubic */
    x = fabs(x);
    return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}
static void load_square(const char *path, float *pixels, int side, cJSON *background) {
    png_image image = {.version = PNG_IMAGE_VERSION};
    if (!png_image_begin_read_from_file(&image, path)) die(3, "%s: not a picture that libpng reads: %s", path, image.message);
    image.format = PNG_FORMAT_RGB;
    unsigned char ground[3], *rows = zeros(PNG_IMAGE_SIZE(image));
    for (int c = 0; c < 3; c++) ground[c] = (unsigned char)cJSON_GetArrayItem(background, c)->valuedouble;
    png_color under = {ground[0], ground[1], ground[2]};
    if (!png_image_finish_read(&image, &under, rows, 0, NULL)) die(3, "%s: %s", path, image.message);
    int width = (int)image.width, height = (int)image.height, longest = width > height ? width : height;
    double scale = (double)longest / side, reach = 2 * fmax(scale, 1);
    for (int i = 0; i < 3 * side * side; i++) {
        double x = (i % side + 0.5) * scale, y = (i / side % side + 0.5) * scale, sum = 0, weights = 0;
        for (int v = (int)fmax(0, y - reach + 0.5); v < fmin(longest, y + reach + 0.5); v++)
            for (int u = (int)fmax(0, x - reach + 0.5); u < fmin(longest, x + reach + 0.5); u++) {
                double weight = cubic((u + 0.5 - x) / fmax(scale, 1)) * cubic((v + 0.5 - y) / fmax(scale, 1));
                int c = i / (side * side), h = u - (longest - width) / 2, w = v - (longest - height) / 2;
                sum += weight * (h < 0 || w < 0 || h >= width || w >= height ? ground[c] : rows[3 * (w * width + h) + c]);
                weights += weight;
            }
        pixels[i] = (float)(fmin(255, fmax(0, round(sum / weights))) / 255);
    }
}

/* One buffer a layer for what the prompt leaves and each token adds: the graph's past and present alike. */
static OrtValue *bound(Graph *step, OrtValue **caches, const char *name) {
    for (size_t i = 2; i < step->inputs; i++)
        if (strchr(name, '_') && !strcmp(strchr(step->in[i], '_'), strchr(name, '_'))) return caches[i];
    die(3, "%s: the graphs do not agree on it", name);
    return NULL;
}
static void say(Graph *decode, int64_t *ids, int64_t count, size_t *said) {
    OrtValue *in = whole_numbers(ids, count, 1), *out = NULL;
    size_t size;
    run(decode, &in, &out, "decode");
    check(ort->GetStringTensorElementLength(out, 0, &size), "text");
    char *text = zeros(size + 1);
    check(ort->GetStringTensorElement(out, size, 0, text), "text");
    while (size && !memcmp(text + (size < 3 ? 0 : size - 3), "\xef\xbf\xbd", size < 3 ? size : 3)) size -= 3; /* half a letter waits */
    if (size > *said) fwrite(text + *said, 1, size - *said, stdout), *said = size, fflush(stdout);
    free(text), ort->ReleaseValue(in), ort->ReleaseValue(out);
}
static void ask(const char *picture, const char *words, int most) {
    OrtValue *in[MOST_TENSORS] = {0}, *out[MOST_TENSORS] = {0}, *caches[MOST_TENSORS] = {0}, *told[3] = {0};
    tokenize("tokenizer/ask_about_prompt.onnx", words, told);
    int64_t token = 0, position = 0, dims[8], *ids = zeros(8 * (size_t)most), slots = length_of(told[0]) + most;
    if (slots > field(field(manifest, "limits"), "max_context")->valuedouble) die(3, "prompt and reply take %d tokens, more than the bundle holds", (int)slots);
    Graph *read = open_call("read"), *step = open_call("token"), *decode = open_graph("tokenizer/decode.onnx", getenv("EDGEMM_EXTENSIONS"));
    size_t rank, said = 0, bytes = shape_of(read, 0, 1, dims, &rank, &(ONNXTensorElementDataType){0});
    cJSON *text = field(field(manifest, "loops"), "text"), *stop;
    float *pixels = zeros(bytes);
    load_square(picture, pixels, (int)dims[3], field(text, "background"));
    in[0] = tensor(pixels, bytes, dims, rank, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    for (size_t i = 2; i < step->inputs; i++) {
        ONNXTensorElementDataType type;
        bytes = shape_of(step, i, slots, dims, &rank, &type);
        caches[i] = tensor(zeros(bytes), bytes, dims, rank, type);
    }
    for (size_t i = 1; i < read->inputs; i++) in[i] = i < 4 ? told[i - 1] : bound(step, caches, read->in[i]);
    caches[0] = whole_numbers(&token, 1, 2), caches[1] = whole_numbers(&position, 1, 1);
    for (size_t i = 0; i < step->outputs; i++) out[i] = !strcmp(step->out[i], "next_id") ? caches[0] : !strcmp(step->out[i], "next_position") ? caches[1] : bound(step, caches, step->out[i]);
    run(read, in, out, "read"); /* outputs of both graphs have one order */
    for (int count = 0; count < most; run(step, caches, out, "token")) {
        cJSON_ArrayForEach(stop, field(text, "stop_token_ids")) if (stop->valuedouble == (double)token) most = 0;
        if (!most) break;
        ids[count++] = token;
        say(decode, ids, count, &said);
        if (count == most) break;
    }
    putchar('\n');
}

int main(int argc, char **argv) {
    if (argc < 5 || argc > 6 || (strcmp(argv[2], "draw") && strcmp(argv[2], "ask"))) die(2, "%s BUNDLE draw WORDS OUTPUT.png [SEED | NOISE.f32], or BUNDLE ask PICTURE.png WORDS [MOST_TOKENS]", argv[0]);
    bundle = argv[1], open_bundle();
    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (!ort) die(4, "ONNX Runtime %s is older than the headers (API %d)", OrtGetApiBase()->GetVersionString(), ORT_API_VERSION);
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "edgemm_c", &env), "environment");
    check(ort->DisableTelemetryEvents(env), "telemetry");
    check(ort->GetAllocatorWithDefaultOptions(&allocator), "allocator");
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory), "memory");
    if (!strcmp(argv[2], "draw")) draw(argv[3], argv[4], argc > 5 ? argv[5] : "0");
    else ask(argv[3], argv[4], argc > 5 ? atoi(argv[5]) : 64);
}
