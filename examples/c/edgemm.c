/* Draws a picture, or says what is in one, with a bundle that `edgemm export --one-call draw,read,tokenize` wrote.
 *     edgemm_c BUNDLE draw "red heart" heart.png [SEED | NOISE.f32]
 *     edgemm_c BUNDLE ask heart.png "What is this?" [MOST_TOKENS]
 *
 * ONNX Runtime's C API runs the graphs, cJSON reads the manifest, libcrypto hashes, libpng reads and writes pictures, and
 * onnxruntime-extensions ($EDGEMM_EXTENSIONS, a library) makes ids of words.  Pictures to ask about are laid on the bundle's
 * background and padded to a square.  Exit codes are edgemm's: 0 done, 2 usage, 3 bad input or bundle, 4 something is missing here. */
#include <cjson/cJSON.h>
#include <fcntl.h>
#include <math.h>
#include <openssl/evp.h>
#include <png.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "onnxruntime_c_api.h"
enum { MOST_TENSORS = 1024, SCHEMA = 1, FLOAT = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, INT64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 };
typedef struct { OrtSession *session; size_t inputs, outputs; char *in[MOST_TENSORS], *out[MOST_TENSORS]; } Graph;
static const OrtApi *ort;
static OrtEnv *env;
static OrtAllocator *allocator;
static const char *bundle;
static cJSON *manifest, *files;

static _Noreturn void die(int code, const char *format, ...) { /* one line, whatever a library or a file's name says */
    char told[1024];
    va_list words;
    va_start(words, format), vsnprintf(told, sizeof told, format, words);
    for (char *letter = told; *letter; letter++) if ((unsigned char)*letter < ' ') *letter = ' ';
    fprintf(stderr, "edgemm_c: error: %s\n", told);
    exit(code);
}
static void check(OrtStatus *status, const char *what) { if (status) die(3, "%s: %s", what, ort->GetErrorMessage(status)); }
static void *zeros(size_t bytes) {
    void *made = calloc(bytes ? bytes : 1, 1);
    if (!made) die(5, "out of memory: %zu bytes", bytes);
    return made;
}
static char *inside(const char *path) { /* a path of the manifest, in the bundle and nowhere else */
    if (path[0] == '/' || strstr(path, "..") || strchr(path, '\\')) die(3, "manifest.json: path '%s' leaves the bundle", path);
    char *whole = zeros(strlen(bundle) + strlen(path) + 2);
    return sprintf(whole, "%s/%s", bundle, path), whole;
}
static unsigned char *read_file(const char *path, size_t *size) {
    FILE *file = fdopen(open(path, O_RDONLY | O_NONBLOCK), "rb"); /* a pipe without a writer is no file, either */
    long end = !file || fseek(file, 0, SEEK_END) ? -1 : ftell(file);
    if (end < 0 || end == INT64_MAX) die(3, "%s: cannot be read: is it a file, and there?", path); /* folders say the largest */
    *size = (size_t)end, rewind(file);
    unsigned char *content = zeros(*size + 1);
    if (fread(content, 1, *size, file) != *size) die(3, "%s: cannot be read to its end", path);
    return fclose(file), content;
}
static cJSON *field(cJSON *object, const char *name) {
    cJSON *found = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!found) die(3, "manifest.json: field '%s' is missing", name);
    return found;
}
static const char *string(cJSON *object, const char *name) {
    cJSON *found = field(object, name);
    if (!cJSON_IsString(found)) die(3, "manifest.json: field '%s' is no string", name);
    return found->valuestring;
}
static double number(cJSON *found, const char *name, double most) {
    if (!cJSON_IsNumber(found) || !(found->valuedouble >= 0 && found->valuedouble <= most)) die(3, "manifest.json: '%s' is no number from 0 to %.0f", name, most);
    return found->valuedouble;
}
static void check_file(cJSON *record) { /* size and SHA-256, before anybody opens it for another purpose */
    char *path = inside(record->string), found[65];
    size_t size;
    unsigned char digest[EVP_MAX_MD_SIZE], *content = read_file(path, &size);
    const char *told = string(record, "sha256");
    if ((double)size != number(field(record, "size_bytes"), "size_bytes", 1e15)) die(3, "%s: has %zu bytes, not those of the manifest", path, size);
    if (!EVP_Digest(content, size, digest, NULL, EVP_sha256(), NULL)) die(4, "libcrypto has no SHA-256");
    for (int i = 0; i < 32; i++) snprintf(found + 2 * i, 3, "%02x", digest[i]);
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
    if (!cJSON_IsNumber(version) || version->valuedouble != SCHEMA) die(3, "%s: schema_version is %s, this program reads %d", path, cJSON_PrintUnformatted(version), SCHEMA);
    if (!cJSON_IsObject(files = field(manifest, "files"))) die(3, "%s: 'files' is no object", path);
    cJSON_ArrayForEach(record, files) check_file(record);
}
/* The way through ONNX's protobuf to the files that a graph's weights lie in: message, field number, message there. */
static const struct { char in; unsigned field; char is; } WAY[] = {
    {'M', 7, 'G'}, {'M', 20, 'I'}, {'M', 25, 'F'}, {'I', 1, 'G'}, {'I', 2, 'G'}, {'F', 7, 'N'}, {'F', 11, 'A'}, {'G', 1, 'N'}, {'G', 5, 'T'}, {'G', 15, 'S'},
    {'N', 5, 'A'}, {'A', 5, 'T'}, {'A', 6, 'G'}, {'A', 10, 'T'}, {'A', 11, 'G'}, {'A', 22, 'S'}, {'A', 23, 'S'}, {'S', 1, 'T'}, {'S', 2, 'T'}, {'T', 13, 'E'}};
static uint64_t varint(const char *path, const unsigned char **at, const unsigned char *end) {
    uint64_t value = 0;
    for (int shift = 0; *at < end && shift < 64; shift += 7) {
        value |= (uint64_t)(**at & 127) << shift;
        if (*(*at)++ < 128) return value;
    }
    die(3, "%s: not an ONNX graph: it ends too soon", path);
}
static void check_weights(const char *path, char in, int depth, const unsigned char *at, const unsigned char *end) {
    const char *told[3] = {"", "", ""}; /* of a TensorProto.external_data: key and value */
    int lengths[3] = {0}, folder = strrchr(path, '/') ? (int)(strrchr(path, '/') - path) + 1 : 0;
    while (at < end) {
        uint64_t tag = varint(path, &at, end), kind = tag & 7, size = kind == 1 ? 8 : kind == 5 ? 4 : varint(path, &at, end);
        if (!kind) continue;
        if ((kind != 2 && kind != 1 && kind != 5) || size > (uint64_t)(end - at) || depth > 64) die(3, "%s: not an ONNX graph: it ends too soon", path);
        for (size_t i = 0; kind == 2 && i < sizeof WAY / sizeof *WAY; i++)
            if (WAY[i].in == in && WAY[i].field == tag >> 3) check_weights(path, WAY[i].is, depth + 1, at, at + size);
        if (kind == 2 && (tag >> 3 == 1 || tag >> 3 == 2)) told[tag >> 3] = (const char *)at, lengths[tag >> 3] = size < 4096 ? (int)size : 4096;
        at += size;
    }
    if (in != 'E' || lengths[1] != 8 || memcmp(told[1], "location", 8)) return;
    char name[8192]; /* where ONNX Runtime would look: beside the graph */
    snprintf(name, sizeof name, "%.*s%.*s", folder, path, lengths[2], told[2]);
    if (!cJSON_GetObjectItemCaseSensitive(files, name)) die(3, "%s: reads weights from '%s', which the manifest does not name", path, name);
}
static Graph *open_graph(const char *path, const char *extensions) {
    Graph *graph = zeros(sizeof *graph);
    OrtSessionOptions *options;
    size_t size;
    if (!cJSON_GetObjectItemCaseSensitive(files, path)) die(3, "%s: not in the bundle: export it with --one-call draw,read,tokenize", path);
    char *whole = inside(path);
    unsigned char *content = read_file(whole, &size);
    check_weights(path, 'M', 0, content, content + size), free(content);
    check(ort->CreateSessionOptions(&options), "options");
    if (extensions) check(ort->RegisterCustomOpsLibrary_V2(options, extensions), "EDGEMM_EXTENSIONS");
    check(ort->CreateSession(env, whole, options, &graph->session), path);
    check(ort->SessionGetInputCount(graph->session, &graph->inputs), path), check(ort->SessionGetOutputCount(graph->session, &graph->outputs), path);
    if (graph->inputs > MOST_TENSORS || graph->outputs > MOST_TENSORS) die(3, "%s: more than %d tensors", path, MOST_TENSORS);
    for (size_t i = 0; i < graph->inputs; i++) check(ort->SessionGetInputName(graph->session, i, allocator, &graph->in[i]), path);
    for (size_t i = 0; i < graph->outputs; i++) check(ort->SessionGetOutputName(graph->session, i, allocator, &graph->out[i]), path);
    return graph;
}
static Graph *open_call(const char *name) {
    return open_graph(string(field(field(field(field(manifest, "one_call"), name), "variants"), "cpu"), "graph"), NULL);
}
/* A tensor of zeros for an input, whose named axes become `free_size`: its numbers, and their bytes. */
static OrtValue *blank(Graph *graph, size_t i, int64_t free_size, void **data, size_t *bytes) {
    const char *what = graph->in[i];
    const OrtTensorTypeAndShapeInfo *tensor;
    OrtTypeInfo *info; OrtValue *value;
    ONNXTensorElementDataType type;
    int64_t dims[8]; size_t rank;
    check(ort->SessionGetInputTypeInfo(graph->session, i, &info), what), check(ort->CastTypeInfoToTensorInfo(info, &tensor), what);
    if (!tensor) die(3, "%s: is no tensor", what);
    check(ort->GetTensorElementType(tensor, &type), what), check(ort->GetDimensionsCount(tensor, &rank), what);
    if (rank > 8) die(3, "%s: has %zu axes", what, rank);
    check(ort->GetDimensions(tensor, dims, rank), what);
    for (size_t k = 0; k < rank; k++) if (dims[k] < 0) dims[k] = free_size;
    check(ort->CreateTensorAsOrtValue(allocator, dims, rank, type, &value), what);
    check(ort->GetTensorSizeInBytes(value, bytes), what), check(ort->GetTensorMutableData(value, data), what);
    return memset(*data, 0, *bytes), ort->ReleaseTypeInfo(info), value;
}
/* How many numbers of a type a tensor has; with `rank`, of such a shape. */
static int64_t count_of(OrtValue *value, int type, size_t rank, int64_t *dims, const char *what) {
    OrtTensorTypeAndShapeInfo *info;
    ONNXTensorElementDataType found;
    size_t count, axes;
    if (!value) die(3, "%s: is not there", what);
    check(ort->GetTensorTypeAndShape(value, &info), what), check(ort->GetTensorElementType(info, &found), what);
    check(ort->GetDimensionsCount(info, &axes), what), check(ort->GetTensorShapeElementCount(info, &count), what);
    if ((int)found != type || (rank && axes != rank)) die(3, "%s: type %d and %zu axes, expected %d and %zu", what, (int)found, axes, type, rank);
    if (rank) check(ort->GetDimensions(info, dims, rank), what);
    return ort->ReleaseTensorTypeAndShapeInfo(info), (int64_t)count;
}
static void run(Graph *graph, OrtValue **in, OrtValue **out, const char *what) {
    check(ort->Run(graph->session, NULL, (const char *const *)graph->in, (const OrtValue *const *)in, graph->inputs, (const char *const *)graph->out, graph->outputs, out), what);
}
static void check_room(int64_t tokens, const char *what) {
    if ((double)tokens > number(field(field(manifest, "limits"), "max_context"), "max_context", 1e9)) die(3, "%s %d tokens, more than the bundle holds", what, (int)tokens); }
/* Words to the arrays that a graph reads: the tokenizer's outputs, in its order. */
static void tokenize(const char *path, const char *words, OrtValue **out) {
    const char *extensions = getenv("EDGEMM_EXTENSIONS");
    if (!extensions) die(4, "EDGEMM_EXTENSIONS is not set: the path of onnxruntime-extensions' library");
    Graph *graph = open_graph(path, extensions);
    OrtValue *text[MOST_TENSORS] = {0};
    check(ort->CreateTensorAsOrtValue(allocator, &(int64_t){1}, 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING, text), path), check(ort->FillStringTensor(text[0], &words, 1), path);
    run(graph, text, out, path);
}
/* Normal numbers by Box and Muller over splitmix64: not numpy's, so a seed's picture is this program's own. */
static void fill_noise(float *noise, size_t count, const char *told) {
    char *end;
    uint64_t state = strtoull(told, &end, 10);
    if (*end) {
        size_t size; unsigned char *given = read_file(told, &size);
        if (size != 4 * count) die(3, "%s: has %zu bytes, expected %zu of float32", told, size, 4 * count);
        memcpy(noise, given, size), count = 0;
    }
    for (size_t i = 0; i < count; i++) {
        double uniform[2];
        for (int k = 0; k < 2; k++) {
            uint64_t z = state += 0x9e3779b97f4a7c15u;
            z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u, z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
            uniform[k] = ((double)((z ^ (z >> 31)) >> 11) + 0.5) / 9007199254740992.0;
        }
        noise[i] = (float)(sqrt(-2 * log(uniform[0])) * cos(6.283185307179586 * uniform[1]));
    }
}
static void draw(const char *words, const char *output, const char *noise_told) {
    OrtValue *in[MOST_TENSORS] = {0}, *out[MOST_TENSORS] = {0};
    int64_t dims[4];
    size_t bytes;
    float *noise, *drawn;
    tokenize("tokenizer/draw_prompt.onnx", words, in), check_room(count_of(in[0], INT64, 0, NULL, "ids"), "the prompt takes");
    Graph *graph = open_call("draw");
    in[2] = blank(graph, 2, 32, (void **)&noise, &bytes); /* of models with several sizes: 32 places a side */
    fill_noise(noise, (size_t)count_of(in[2], FLOAT, 0, NULL, "noise"), noise_told);
    run(graph, in, out, "draw");
    size_t count = (size_t)count_of(out[0], FLOAT, 4, dims, "pixels"), area = (size_t)(dims[2] * dims[3]);
    if (!area || count != 3 * area) die(3, "pixels: %zu numbers are no picture of %d x %d", count, (int)dims[3], (int)dims[2]);
    check(ort->GetTensorMutableData(out[0], (void **)&drawn), "pixels");
    unsigned char *rows = zeros(3 * area);
    for (size_t i = 0; i < 3 * area; rows[3 * (i % area) + i / area] = (unsigned char)lrintf(255 * drawn[i]), i++)
        if (!(drawn[i] >= 0 && drawn[i] <= 1)) die(3, "pixels: number %zu is %g, expected 0 to 1", i, drawn[i]);
    png_image image = {.version = PNG_IMAGE_VERSION, .width = (png_uint_32)dims[3], .height = (png_uint_32)dims[2], .format = PNG_FORMAT_RGB};
    if (!png_image_write_to_file(&image, output, 0, rows, 0, NULL)) die(3, "%s: cannot be written: %s", output, image.message);
    printf("Wrote %s (%d x %d)\n", output, (int)dims[3], (int)dims[2]);
}
static double cubic(double x) { /* Keys' kernel, as Pillow's bicubic */
    return (x = fabs(x)) < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}
static void load_square(const char *path, float *pixels, int side, cJSON *background) {
    png_image image = {.version = PNG_IMAGE_VERSION};
    if (!png_image_begin_read_from_file(&image, path)) die(3, "%s: not a picture that libpng reads: %s", path, image.message);
    if ((double)image.width * image.height > number(field(field(manifest, "limits"), "max_image_pixels"), "max_image_pixels", 1e9)) die(3, "%s: more pixels than the bundle reads", path);
    image.format = PNG_FORMAT_RGB;
    unsigned char ground[3], *rows = zeros(PNG_IMAGE_SIZE(image));
    for (int c = 0; c < 3; c++) ground[c] = (unsigned char)number(cJSON_GetArrayItem(background, c), "background", 255);
    if (!png_image_finish_read(&image, &(png_color){ground[0], ground[1], ground[2]}, rows, 0, NULL)) die(3, "%s: %s", path, image.message);
    int width = (int)image.width, height = (int)image.height, longest = width > height ? width : height;
    double scale = (double)longest / side, reach = 2 * fmax(scale, 1);
    for (int i = 0; i < 3 * side * side; i++) {
        double x = (i % side + 0.5) * scale, y = (i / side % side + 0.5) * scale, sum = 0, weights = 0;
        for (int v = (int)fmax(0, y - reach + 0.5); v < fmin(longest, y + reach + 0.5); v++)
            for (int u = (int)fmax(0, x - reach + 0.5); u < fmin(longest, x + reach + 0.5); u++) {
                double weight = cubic((u + 0.5 - x) / fmax(scale, 1)) * cubic((v + 0.5 - y) / fmax(scale, 1));
                int c = i / (side * side), h = u - (longest - width) / 2, w = v - (longest - height) / 2;
                sum += weight * (h < 0 || w < 0 || h >= width || w >= height ? ground[c] : rows[3 * (w * width + h) + c]), weights += weight;
            }
        pixels[i] = (float)(fmin(255, fmax(0, round(sum / weights))) / 255);
    }
}
/* One buffer a layer for what the prompt leaves and each token adds: the graph's past and present alike. */
static OrtValue *bound(Graph *step, OrtValue **caches, const char *name) {
    const char *tail = strchr(name, '_'), *own;
    for (size_t i = 2; i < step->inputs; i++) if ((own = strchr(step->in[i], '_')) && tail && !strcmp(own, tail)) return caches[i];
    die(3, "%s: the graphs do not agree on it", name);
}
static void say(Graph *decode, const int64_t *ids, int64_t count, size_t *said) {
    void *copy; size_t size;
    OrtValue *in[MOST_TENSORS] = {blank(decode, 0, count, &copy, &size)}, *out[MOST_TENSORS] = {0};
    if (size != 8 * (size_t)count) die(3, "tokenizer/decode.onnx: takes no ids");
    memcpy(copy, ids, size), run(decode, in, out, "decode");
    check(ort->GetStringTensorElementLength(out[0], 0, &size), "decode");
    char *text = zeros(size + 1);
    check(ort->GetStringTensorElement(out[0], size, 0, text), "decode");
    while (size && !memcmp(text + (size < 3 ? 0 : size - 3), "\xef\xbf\xbd", size < 3 ? size : 3)) size -= 3; /* half a letter waits */
    if (size > *said) fwrite(text + *said, 1, size - *said, stdout), *said = size, fflush(stdout);
    free(text), ort->ReleaseValue(in[0]), ort->ReleaseValue(out[0]);
}
static void ask(const char *picture, const char *words, int most) {
    OrtValue *in[MOST_TENSORS] = {0}, *out[MOST_TENSORS] = {0}, *caches[MOST_TENSORS] = {0}, *told[MOST_TENSORS] = {0};
    tokenize("tokenizer/ask_about_prompt.onnx", words, told);
    Graph *read = open_call("read"), *step = open_call("token"), *decode = open_graph("tokenizer/decode.onnx", getenv("EDGEMM_EXTENSIONS"));
    if (!read->inputs || strcmp(read->in[0], "pixels")) die(3, "the bundle reads no pictures");
    int64_t dims[4], *ids = zeros(8 * (size_t)most), *token, slots = count_of(told[0], INT64, 0, NULL, "ids") + most;
    check_room(slots, "prompt and reply take");
    cJSON *text = field(field(manifest, "loops"), "text"), *stop;
    size_t said = 0, bytes; void *data;
    in[0] = blank(read, 0, 1, &data, &bytes);
    if (count_of(in[0], FLOAT, 4, dims, "pixels") != 3 * dims[3] * dims[3]) die(3, "pixels: not those of a square");
    load_square(picture, data, (int)dims[3], field(text, "background"));
    for (size_t i = 1; i < step->inputs; i++) caches[i] = blank(step, i, slots, &data, &bytes);
    caches[0] = blank(step, 0, 1, (void **)&token, &bytes);
    if (count_of(caches[0], INT64, 2, dims, "token_id") != 1) die(3, "token_id: more than one");
    for (size_t i = 1; i < read->inputs; i++) in[i] = i < 4 ? told[i - 1] : bound(step, caches, read->in[i]);
    for (size_t i = 0; i < step->outputs; i++) out[i] = !strcmp(step->out[i], "next_id") ? caches[0] : !strcmp(step->out[i], "next_position") ? caches[1] : bound(step, caches, step->out[i]);
    run(read, in, out, "read"); /* outputs of both graphs have one order */
    for (int count = 0; count < most; run(step, caches, out, "token")) {
        cJSON_ArrayForEach(stop, field(text, "stop_token_ids")) if (stop->valuedouble == (double)*token) most = 0;
        if (!most) break;
        ids[count++] = *token, say(decode, ids, count, &said);
        if (count == most) break;
    }
    putchar('\n');
}
int main(int argc, char **argv) {
    int asked = argc > 2 && !strcmp(argv[2], "ask"), most = asked && argc > 5 ? atoi(argv[5]) : 64;
    if (argc < 5 || argc > 6 || (!asked && strcmp(argv[2], "draw")) || most < 1) die(2, "%s BUNDLE draw WORDS OUTPUT.png [SEED | NOISE.f32], or BUNDLE ask PICTURE.png WORDS [MOST_TOKENS]", argv[0]);
    const char *seed = asked || argc < 6 ? "0" : argv[5]; /* or a file */
    if (!*seed || *seed == '-' || (!seed[strspn(seed, "0123456789")] && strlen(seed) > 19)) die(2, "seed is '%s', expected 0 to 10^19 - 1, or a file of noise", seed);
    bundle = argv[1], open_bundle(), ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (!ort) die(4, "ONNX Runtime %s is older than the headers (API %d)", OrtGetApiBase()->GetVersionString(), ORT_API_VERSION);
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "edgemm_c", &env), "environment"), check(ort->DisableTelemetryEvents(env), "telemetry");
    check(ort->GetAllocatorWithDefaultOptions(&allocator), "allocator");
    asked ? ask(argv[3], argv[4], most) : draw(argv[3], argv[4], seed);
}
